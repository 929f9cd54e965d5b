//! What a command is, and the list of all of them.
//!
//! A command is a type with an encoding of its arguments and one function that carries it out on a
//! [`Tx`]. Its keys aren't among the arguments: they stand in the [`Operation`], so that whoever
//! routes, checks or authorizes it needs to understand nothing else, and a command can't touch a key
//! that its operation doesn't name.
//!
//! To add one: write the type in the file of its family, and its row in [`COMMANDS`].

use crate::apply::ApplyError;
use crate::tx::Tx;
use crate::{bits, geo, hash, hyperloglog, keys, list, set, string, zset};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{REPLY_TOO_LARGE, TOO_MUCH_READ};
use kvdb_model::{Body, CommandId, Limits, Operation, Refusal, Reply};

/// Most bytes of elements in one reply. A part of the state machine: fixed.
const REPLY_MAX_BYTES: usize = 8 << 20;
/// What an element in a reply counts beside its bytes. A part of the state machine: fixed.
const REPLY_OVERHEAD_BYTES: usize = 16;
/// Most elements of a reply. A part of the state machine: fixed.
pub(crate) const REPLIED_MOST: u64 = (REPLY_MAX_BYTES / REPLY_OVERHEAD_BYTES) as u64;
/// Most bytes of elements of one result that is stored. A part of the state machine: fixed.
pub(crate) const STORED_MAX_BYTES: usize = REPLY_MAX_BYTES;
/// Most bytes of elements that a write reads, or a command that isn't in one: they are in memory together, and what a command
/// copies stays there until its write is done. A part of the state machine: fixed.
pub(crate) const READ_MAX_BYTES: u64 = 128 << 20;
/// Most elements that one command changes. A part of the state machine: fixed.
pub(crate) const CHANGED_MOST: u64 = 100_000;

/// What a command may do to what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Nothing.
    Read,
    /// Remove something. Also carried out when a disk is full.
    Free,
    /// Change what is there; it makes no key where there is none.
    Change,
    /// Add something.
    Grow,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Whether it did what its name says.
    pub applied: bool,
    /// What it answers with beside that.
    pub reply: Reply,
}

impl Done {
    /// It applied.
    pub const APPLIED: Done = Done { applied: true, reply: Reply::None };
    /// There was nothing to do.
    pub const NOT_APPLIED: Done = Done { applied: false, reply: Reply::None };

    /// The same, with a reply.
    #[must_use]
    pub fn with(self, reply: Reply) -> Self {
        Done { reply, ..self }
    }
}

/// Why a command wasn't carried out.
#[derive(Debug)]
pub enum Fault {
    /// For whoever asked; nothing was changed.
    Refused(Refusal),
    /// The replica can't go on.
    Stop(ApplyError),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Fault::Refused(refusal)
    }
}

impl From<ApplyError> for Fault {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::TooMuchRead => wrong(TOO_MUCH_READ),
            error => Fault::Stop(error),
        }
    }
}

/// How large a reply is, as far as it has been put together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReplySize {
    bytes: usize,
    elements: usize,
}

impl ReplySize {
    /// Counts an element. Returns whether the reply is within its limit.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        self.elements += 1;
        self.is_within()
    }

    /// An element as large as it can be fits where it is the only one.
    fn is_within(self) -> bool {
        let overhead = self.elements.saturating_sub(1) * REPLY_OVERHEAD_BYTES;
        self.bytes + overhead <= REPLY_MAX_BYTES
    }

    /// # Errors
    /// If the reply is beyond its limit.
    pub(crate) fn check(self) -> Result<(), Fault> {
        if self.is_within() { Ok(()) } else { Err(wrong(REPLY_TOO_LARGE)) }
    }
}

/// A refusal that is about the value that is there.
pub(crate) fn wrong(why: &'static str) -> Fault {
    Fault::Refused(Refusal::WrongValue(why))
}

/// A command's arguments, and what it does. Everything that it decides depends on them, on what
/// the [`Tx`] shows and on its version alone: every replica comes to the same.
pub trait Command: Sized {
    /// Which command: for good.
    const ID: CommandId;
    /// Which encoding of the arguments. A change of what applying computes is another format, too.
    const FORMAT: u8 = 1;
    /// What it may do.
    const EFFECT: Effect;
    /// Keys that it touches beside its own: at least, and at most.
    const OTHERS: (usize, usize) = (0, 0);

    /// Appends the arguments.
    fn encode(&self, out: &mut Writer);

    /// Reads what [`Command::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    fn decode(input: &mut Reader) -> Result<Self, DecodeError>;

    /// Checks the arguments against the limits on what a client may send.
    ///
    /// # Errors
    /// [`Refusal::InvalidArgument`] naming field and limit.
    fn check(&self, _limits: &Limits) -> Result<(), Refusal> {
        Ok(())
    }

    /// Carries it out.
    ///
    /// # Errors
    /// [`Fault::Refused`]: whatever it has changed so far is taken back.
    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault>;

    /// The command, encoded.
    fn body(&self) -> Body {
        let mut out = Writer::with_capacity(32);
        self.encode(&mut out);
        Body { id: Self::ID, format: Self::FORMAT, args: out.finish() }
    }

    /// The command on a key.
    fn on(&self, key: Bytes) -> Operation {
        Operation::new(key, self.body())
    }
}

/// A command in the list.
pub struct Row {
    /// Its number.
    pub id: CommandId,
    /// Its name, for metrics and messages.
    pub name: &'static str,
    /// What it may do.
    pub effect: Effect,
    others: (usize, usize),
    format: u8,
    check: fn(&Bytes, &Limits) -> Result<(), Refusal>,
    pub(crate) apply: fn(&Bytes, &mut Tx<'_>) -> Result<Done, Fault>,
}

const fn row<C: Command>(name: &'static str) -> Row {
    Row {
        id: C::ID,
        name,
        effect: C::EFFECT,
        others: C::OTHERS,
        format: C::FORMAT,
        check: |args, limits| decode::<C>(args)?.check(limits),
        apply: |args, tx| decode::<C>(args)?.apply(tx),
    }
}

fn decode<C: Command>(args: &Bytes) -> Result<C, Refusal> {
    let mut input = Reader::new(args.clone());
    let command = C::decode(&mut input).and_then(|command| input.end().map(|()| command));
    command.map_err(|error| Refusal::invalid("command", format!("can't be read: {error}")))
}

/// All commands, ascending by number.
pub static COMMANDS: &[Row] = &[
    row::<string::Get>("get"),
    row::<string::Set>("set"),
    row::<string::Increment>("increment"),
    row::<string::IncrementFloat>("increment_float"),
    row::<string::Append>("append"),
    row::<string::SetRange>("set_range"),
    row::<bits::SetBit>("set_bit"),
    row::<bits::BitField>("bit_field"),
    row::<bits::BitOp>("bit_op"),
    row::<keys::Look>("look"),
    row::<keys::Check>("check"),
    row::<keys::Delete>("delete"),
    row::<keys::SetExpiry>("set_expiry"),
    row::<keys::Rename>("rename"),
    row::<keys::Copy>("copy"),
    row::<keys::Encoding>("encoding"),
    row::<keys::Size>("size"),
    row::<keys::Sort>("sort"),
    row::<keys::SortInto>("sort_into"),
    row::<keys::ReadWhole>("read_whole"),
    row::<keys::Restore>("restore"),
    row::<hash::Set>("hash_set"),
    row::<hash::Delete>("hash_delete"),
    row::<hash::Increment>("hash_increment"),
    row::<hash::IncrementFloat>("hash_increment_float"),
    row::<hash::Get>("hash_get"),
    row::<hash::Length>("hash_length"),
    row::<hash::Scan>("hash_scan"),
    row::<hash::Random>("hash_random"),
    row::<hash::ExpireFields>("hash_expire_fields"),
    row::<hash::PersistFields>("hash_persist_fields"),
    row::<hash::FieldDeadlines>("hash_field_deadlines"),
    row::<hash::Take>("hash_take"),
    row::<hash::GetAndExpire>("hash_get_and_expire"),
    row::<hash::SetUntil>("hash_set_until"),
    row::<set::Add>("set_add"),
    row::<set::Remove>("set_remove"),
    row::<set::Pop>("set_pop"),
    row::<set::Move>("set_move"),
    row::<set::Contains>("set_contains"),
    row::<set::Length>("set_length"),
    row::<set::Scan>("set_scan"),
    row::<set::Random>("set_random"),
    row::<set::Combine>("set_combine"),
    row::<set::CombineInto>("set_combine_into"),
    row::<set::CountCommon>("set_count_common"),
    row::<zset::Add>("sorted_set_add"),
    row::<zset::Increment>("sorted_set_increment"),
    row::<zset::Remove>("sorted_set_remove"),
    row::<zset::Scores>("sorted_set_scores"),
    row::<zset::Length>("sorted_set_length"),
    row::<zset::Rank>("sorted_set_rank"),
    row::<zset::Select>("sorted_set_select"),
    row::<zset::Count>("sorted_set_count"),
    row::<zset::SelectInto>("sorted_set_select_into"),
    row::<zset::RemoveRange>("sorted_set_remove_range"),
    row::<zset::Pop>("sorted_set_pop"),
    row::<zset::PopAny>("sorted_set_pop_any"),
    row::<zset::Random>("sorted_set_random"),
    row::<zset::Scan>("sorted_set_scan"),
    row::<zset::Combine>("sorted_set_combine"),
    row::<zset::CombineInto>("sorted_set_combine_into"),
    row::<zset::CountCommon>("sorted_set_count_common"),
    row::<geo::Search>("geo_search"),
    row::<geo::SearchInto>("geo_search_into"),
    row::<list::Push>("list_push"),
    row::<list::Pop>("list_pop"),
    row::<list::Length>("list_length"),
    row::<list::Index>("list_index"),
    row::<list::Range>("list_range"),
    row::<list::Replace>("list_replace"),
    row::<list::Insert>("list_insert"),
    row::<list::Remove>("list_remove"),
    row::<list::Trim>("list_trim"),
    row::<list::Find>("list_find"),
    row::<list::Move>("list_move"),
    row::<hyperloglog::Add>("hyperloglog_add"),
    row::<hyperloglog::Count>("hyperloglog_count"),
    row::<hyperloglog::Merge>("hyperloglog_merge"),
];

/// The row of a command, if this binary knows it in that format.
pub fn find(body: &Body) -> Option<&'static Row> {
    let place = COMMANDS.binary_search_by_key(&body.id, |row| row.id).ok()?;
    COMMANDS.get(place).filter(|row| row.format == body.format)
}

impl Row {
    /// Whether an operation names as many keys as its command touches.
    pub(crate) fn check_keys(&self, operation: &Operation) -> Result<(), Refusal> {
        let (least, most) = self.others;
        let count = operation.others.len();
        if (least..=most).contains(&count) {
            return Ok(());
        }
        let problem =
            format!("are {}; {} takes {} to {}", count + 1, self.name, least + 1, most + 1);
        Err(Refusal::invalid("keys", problem))
    }
}

/// Checks an operation from outside: that its command is known, can be read, and keeps to the
/// limits. Its keys are for whoever routes them.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming what is wrong, and the limit.
pub fn check(operation: &Operation, limits: &Limits) -> Result<&'static Row, Refusal> {
    let Body { id, format, args } = &operation.body;
    let Some(row) = find(&operation.body) else {
        let problem = format!("{} in format {format} is not known to this version", id.0);
        return Err(Refusal::invalid("command", problem));
    };
    row.check_keys(operation)?;
    (row.check)(args, limits)?;
    Ok(row)
}

/// What an operation may do to what is stored. One that isn't known may do anything.
pub fn effect_of(operation: &Operation) -> Effect {
    find(&operation.body).map_or(Effect::Grow, |row| row.effect)
}

/// A flag among arguments.
pub(crate) fn flag(input: &mut Reader) -> Result<bool, DecodeError> {
    match input.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::unknown_tag("flag", other)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// That a command is what it was after the way through its encoding.
    pub(crate) fn survives<C: Command + PartialEq + std::fmt::Debug>(command: &C) {
        let body = command.body();
        let row = find(&body).expect("it is in the list");
        assert_eq!(row.id, C::ID);
        assert_eq!(&decode::<C>(&body.args).expect("it can be read"), command);
    }

    #[test]
    fn each_number_is_in_the_list_once_and_in_order() {
        assert!(
            COMMANDS.windows(2).all(|pair| pair[0].id < pair[1].id && pair[0].name != pair[1].name)
        );
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let limits = Limits::default();
        let body = keys::Delete.body();
        let newer = Body { format: 9, ..body.clone() };
        let refused =
            check(&Operation::new("k".into(), newer), &limits).err().map(|r| r.to_string());
        assert_eq!(
            refused.as_deref(),
            Some("command 771 in format 9 is not known to this version")
        );
        let others = vec!["a".into()];
        let refused = check(&Operation { others, ..Operation::new("k".into(), body) }, &limits);
        let refused = refused.err().map(|refusal| refusal.to_string());
        assert_eq!(refused.as_deref(), Some("keys are 2; delete takes 1 to 1"));
    }

    proptest! {
        #[test]
        fn junk_never_panics(place in 0..COMMANDS.len(), junk in prop::collection::vec(any::<u8>(), 0..60)) {
            let row = &COMMANDS[place];
            let body = Body { id: row.id, format: 1, args: junk.into() };
            let others = vec![Bytes::new(); row.others.0];
            let _ = check(&Operation { others, ..Operation::new("k".into(), body) }, &Limits::default());
        }
    }
}
