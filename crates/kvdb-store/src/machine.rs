//! The part of a state machine that only the coordinators have.

use bytes::Bytes;
use kvdb_model::Version;

/// What a control command did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlOutcome {
    /// The encoded answer for whoever proposed it.
    pub result: Bytes,
    /// Records that changed: key and new value, or `None` for a removal. A later change of the
    /// same key wins.
    pub changes: Vec<(Bytes, Option<Bytes>)>,
}

/// A deterministic state machine whose state is a set of records. The shard stores them in the
/// batch of the entry that changed them, and feeds them back when it is opened: a machine that was
/// loaded from its records must go on exactly as the one that made them.
pub trait Machine: Send + 'static {
    /// Takes back one record. They come in the order of their keys.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    fn load(&mut self, key: &Bytes, value: &Bytes) -> Result<(), String>;

    /// Everything was loaded (possibly nothing).
    fn loaded(&mut self) {}

    /// Forgets everything: records will be loaded, or a snapshot takes its place.
    fn clear(&mut self);

    /// Applies a command at a version. It must not fail: a command that can't be read or carried
    /// out is answered by saying so in the result.
    fn apply(&mut self, command: &Bytes, version: Version) -> ControlOutcome;
}

/// The machine of data shards: there are no control commands, and one that comes changes nothing
/// and is answered with nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoControl;

impl Machine for NoControl {
    fn load(&mut self, _key: &Bytes, _value: &Bytes) -> Result<(), String> {
        Err("a data shard holds a control record".to_owned())
    }

    fn clear(&mut self) {}

    fn apply(&mut self, _command: &Bytes, _version: Version) -> ControlOutcome {
        ControlOutcome::default()
    }
}
