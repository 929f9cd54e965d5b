//! Every command: how it is called, what carries it out, and what is promised.

use crate::number::parse_u64;
use crate::reply::Reply;
use crate::session::{Session, Step};
use crate::{
    args::Planned, bits, field_expiry, geo, hashes, hyperloglogs, keys, lcs, lists, server, sets,
    sort, strings, zsets,
};
use bytes::Bytes;

/// What carries a command out.
#[derive(Clone, Copy)]
pub enum Handler {
    /// A plan on keys.
    Keys(fn(&[Bytes]) -> Planned),
    /// A plan on keys that depends on the connection.
    Here(fn(&Session, &[Bytes]) -> Planned),
    /// An answer that needs nobody.
    Local(fn(&mut Session, &[Bytes]) -> Reply),
    /// Anything.
    Step(fn(&mut Session, &[Bytes]) -> Step),
}

/// A command.
pub struct Spec {
    /// In small letters.
    pub name: &'static str,
    /// Words, the name included; negative: at least so many.
    pub arity: i32,
    /// `write`, `readonly`, `fast` and so on, with spaces between.
    pub flags: &'static str,
    /// The first key, the last (negative: from the end), and the step from one to the next; 0 where
    /// there are none.
    pub keys: (i32, i32, i32),
    /// As Redis groups it.
    pub group: &'static str,
    /// What carries it out.
    pub handler: Handler,
    /// What it does.
    pub summary: &'static str,
    /// Where it differs from Redis, and how atomic it is.
    pub notes: &'static str,
}

impl Spec {
    /// Whether so many words are enough and not too many.
    pub fn accepts(&self, words: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { words >= least } else { words == least }
    }

    /// Whether it is carried out at once though a transaction is open.
    pub(crate) fn in_transaction_at_once(&self) -> bool {
        matches!(self.name, "exec" | "discard" | "multi" | "watch" | "quit" | "reset")
    }

    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags.split_whitespace().any(|known| known == flag)
    }

    /// Whether it asks the gateway alone, not the cluster.
    pub(crate) fn is_about_server(&self) -> bool {
        matches!(self.name, "client" | "config" | "info" | "wait")
    }

    /// Which word says how many keys follow it, where one does.
    pub(crate) fn counts_keys_at(&self) -> Option<usize> {
        match self.name {
            "lmpop" | "sintercard" | "zdiff" | "zinter" | "zintercard" | "zmpop" | "zunion" => {
                Some(1)
            }
            "zdiffstore" | "zinterstore" | "zunionstore" => Some(2),
            _ => None,
        }
    }

    /// The keys among a command's words.
    pub fn keys_of(&self, args: &[Bytes]) -> Vec<Bytes> {
        let mut keys = self.keys_in_fixed_places(args);
        match self.name {
            "georadius" => keys.extend(geo::stored_key(args, 6).cloned()),
            "georadiusbymember" => keys.extend(geo::stored_key(args, 5).cloned()),
            "sort" => keys.extend(sort::stored_key(args).cloned()),
            _ => {}
        }
        if let Some(at) = self.counts_keys_at() {
            let counted = args.get(at).and_then(|count| parse_u64(count));
            let counted = counted.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
            match args.get(at + 1..).unwrap_or_default().get(..counted) {
                // A count that isn't so: no key is told.
                None | Some([]) => return vec![],
                Some(counted) => keys.extend_from_slice(counted),
            }
        }
        keys
    }

    fn keys_in_fixed_places(&self, args: &[Bytes]) -> Vec<Bytes> {
        let (first, last, step) = self.keys;
        let (Ok(first), Ok(step)) = (usize::try_from(first), usize::try_from(step)) else {
            return vec![];
        };
        let count = args.len() as i64;
        let last = if last < 0 { count + i64::from(last) } else { i64::from(last) };
        if first == 0 || step == 0 {
            return vec![];
        }
        let last = usize::try_from(last + 1).unwrap_or(0).min(args.len());
        args.get(first..last).unwrap_or_default().iter().step_by(step).cloned().collect()
    }
}

/// The command of this name, in any case.
pub fn find(name: &[u8]) -> Option<&'static Spec> {
    position(name).map(|at| &COMMANDS[at])
}

/// The place of a command in [`COMMANDS`].
pub fn position(name: &[u8]) -> Option<usize> {
    // Long names aren't looked for.
    if name.len() > 24 {
        return None;
    }
    COMMANDS
        .binary_search_by(|spec| spec.name.bytes().cmp(name.iter().map(u8::to_ascii_lowercase)))
        .ok()
}

/// What a command is called, with what stands inside it: `client|list`. `NULL`, as in Redis, for
/// one that doesn't exist.
pub fn full_name(name: &[u8], inside: &[u8]) -> String {
    let Some(spec) = find(name) else { return "NULL".to_owned() };
    match crate::subcommands::of(spec.name).and_then(|container| container.find(inside)) {
        Some(known) => format!("{}|{}", spec.name, known.name),
        None => spec.name.to_owned(),
    }
}

const NONE: (i32, i32, i32) = (0, 0, 0);
const ONE: (i32, i32, i32) = (1, 1, 1);
const ALL: (i32, i32, i32) = (1, -1, 1);
const TWO: (i32, i32, i32) = (1, 2, 1);
const GROW_FAST: &str = "write denyoom fast";
const GROW: &str = "write denyoom";
const CHANGE_FAST: &str = "write fast";
const CHANGE: &str = "write";
const READ_FAST: &str = "readonly fast";
const READ: &str = "readonly";
const READ_COUNTED: &str = "readonly movablekeys";
const GROW_COUNTED: &str = "write denyoom movablekeys";
const CHANGE_COUNTED: &str = "write movablekeys";
const ALWAYS: &str = "noscript loading stale fast no_auth allow_busy";
const TRANSACTION: &str = "noscript loading stale fast allow_busy";
const CONNECTION_FAST: &str = "loading stale fast";
const CONNECTION: &str = "loading stale";
const CONTAINER: &str = "";
const NO_SCRIPT: &str = "noscript";
const FAST: &str = "fast";
const SAVE: &str = "admin noscript no_async_loading no_multi";
const SHUTDOWN: &str = "admin noscript loading stale no_multi allow_busy";
const EXEC: &str = "noscript loading stale skip_slowlog";

macro_rules! commands {
    ($($name:literal $arity:literal $flags:ident $keys:tt $group:literal $kind:ident($handler:expr) $summary:literal $notes:literal;)*) => {
        /// All of them, by name.
        pub const COMMANDS: &[Spec] = &[$(Spec {
            name: $name,
            arity: $arity,
            flags: $flags,
            keys: $keys,
            group: $group,
            handler: Handler::$kind($handler),
            summary: $summary,
            notes: $notes,
        },)*];
    };
}

commands! {
    "append" 3 GROW_FAST ONE "string" Keys(strings::append) "Adds to the end of a string" "";
    "auth" -2 ALWAYS NONE "connection" Local(server::auth) "Logs in" "there are no passwords: the user `default` is let in with any";
    "bitcount" -2 READ ONE "bitmap" Keys(bits::bitcount) "Counts set bits" "";
    "bitfield" -2 GROW ONE "bitmap" Keys(bits::bitfield) "Reads and changes numbers inside a string" "";
    "bitfield_ro" -2 READ_FAST ONE "bitmap" Keys(bits::bitfield_ro) "Reads numbers inside a string" "";
    "bitop" -4 GROW (2, -1, 1) "bitmap" Keys(bits::bitop) "Combines strings bit by bit" "all keys on one shard";
    "bitpos" -3 READ ONE "bitmap" Keys(bits::bitpos) "Finds the first set or clear bit" "";
    "client" -2 CONTAINER NONE "connection" Step(server::client) "Asks about connections" "GETNAME GETREDIR HELP ID INFO KILL LIST NO-EVICT NO-TOUCH REPLY SETINFO SETNAME TRACKINGINFO UNBLOCK; LIST and KILL see one gateway";
    "command" -1 CONNECTION NONE "server" Local(server::command) "Describes commands" "COUNT DOCS GETKEYS GETKEYSANDFLAGS HELP INFO LIST; those that KvDB has";
    "config" -2 CONTAINER NONE "server" Step(server::of_server) "Shows settings" "GET HELP RESETSTAT REWRITE SET; what is set is kept by one gateway until it stops; what KvDB always does can't be changed";
    "copy" -3 GROW TWO "generic" Here(keys::copy) "Copies a key" "both keys on one shard; DB only if it is the one that is selected";
    "dbsize" 1 READ_FAST NONE "server" Step(server::dbsize) "Counts keys" "walks all keys: not of one moment, and slow on large databases; not inside MULTI";
    "decr" 2 GROW_FAST ONE "string" Keys(strings::decr) "Takes 1 from a counter" "";
    "decrby" 3 GROW_FAST ONE "string" Keys(strings::decrby) "Takes a number from a counter" "";
    "del" -2 CHANGE ALL "generic" Keys(keys::del) "Removes keys" "each key for itself";
    "discard" 1 TRANSACTION NONE "transactions" Local(server::discard) "Drops a transaction" "";
    "dump" 2 READ ONE "generic" Keys(keys::dump_key) "The stored form of a key" "as Redis 7.0 reads it; refused above 8 MiB, and for a hash with fields that expire";
    "echo" 2 CONNECTION_FAST NONE "connection" Local(server::echo) "Answers with what it was sent" "";
    "exec" 1 EXEC NONE "transactions" Step(server::exec) "Carries a transaction out" "atomic; all keys, watched ones too, on one shard, otherwise refused";
    "exists" -2 READ_FAST ALL "generic" Keys(keys::exists) "Whether keys are there" "each key for itself";
    "expire" -3 CHANGE_FAST ONE "generic" Keys(keys::expire) "Sets seconds to live" "";
    "expireat" -3 CHANGE_FAST ONE "generic" Keys(keys::expireat) "Sets the end of a key's life" "";
    "expiretime" 2 READ_FAST ONE "generic" Keys(keys::expiretime) "When a key expires, in seconds since 1970" "";
    "flushall" -1 CHANGE NONE "server" Step(server::flushall) "Removes all keys of all databases" "a key at a time, not at one moment; not inside MULTI";
    "flushdb" -1 CHANGE NONE "server" Step(server::flushdb) "Removes all keys of the database" "a key at a time, not at one moment; not inside MULTI";
    "function" -2 CONTAINER NONE "scripting" Local(server::function) "Functions" "FLUSH HELP LIST: there are no functions";
    "geoadd" -5 GROW ONE "geo" Keys(geo::geoadd) "Adds places, or moves them" "up to 100,000 a command";
    "geodist" -4 READ ONE "geo" Keys(geo::geodist) "The distance of two places" "";
    "geohash" -2 READ ONE "geo" Keys(geo::geohash) "The geohashes of places" "";
    "geopos" -2 READ ONE "geo" Keys(geo::geopos) "The positions of places" "";
    "georadius" -6 GROW_COUNTED ONE "geo" Keys(geo::georadius) "Places around a position" "with STORE both keys on one shard; refused above 8 MiB, stored up to 100,000";
    "georadius_ro" -6 READ ONE "geo" Keys(geo::georadius_ro) "Places around a position" "refused above 8 MiB";
    "georadiusbymember" -5 GROW_COUNTED ONE "geo" Keys(geo::georadiusbymember) "Places around another one" "with STORE both keys on one shard; refused above 8 MiB, stored up to 100,000";
    "georadiusbymember_ro" -5 READ ONE "geo" Keys(geo::georadiusbymember_ro) "Places around another one" "refused above 8 MiB";
    "geosearch" -7 READ ONE "geo" Keys(geo::geosearch) "Places in a circle or a box" "refused above 8 MiB";
    "geosearchstore" -8 GROW TWO "geo" Keys(geo::geosearchstore) "Stores the places in a circle or a box" "both keys on one shard; refused above 100,000 places";
    "get" 2 READ_FAST ONE "string" Keys(strings::get) "The value of a key" "";
    "getbit" 3 READ_FAST ONE "bitmap" Keys(bits::getbit) "A bit of a string" "";
    "getdel" 2 CHANGE_FAST ONE "string" Keys(strings::getdel) "The value of a key, and removes it" "";
    "getex" -2 CHANGE_FAST ONE "string" Keys(strings::getex) "The value of a key, and sets its expiry" "";
    "getrange" 4 READ ONE "string" Keys(strings::getrange) "A part of a string" "";
    "getset" 3 GROW_FAST ONE "string" Keys(strings::getset) "Sets a key, and answers with what was there" "";
    "hdel" -3 CHANGE_FAST ONE "hash" Keys(hashes::hdel) "Removes fields of a hash" "";
    "hello" -1 ALWAYS NONE "connection" Local(server::hello) "Chooses the protocol's version" "";
    "hexists" 3 READ_FAST ONE "hash" Keys(hashes::hexists) "Whether a hash has a field" "";
    "hexpire" -6 GROW_FAST ONE "hash" Keys(field_expiry::hexpire) "Sets seconds to live of fields" "as Redis 7.4 has it";
    "hexpireat" -6 GROW_FAST ONE "hash" Keys(field_expiry::hexpireat) "Sets the end of the life of fields" "as Redis 7.4 has it";
    "hexpiretime" -5 READ_FAST ONE "hash" Keys(field_expiry::hexpiretime) "When fields expire, in seconds since 1970" "as Redis 7.4 has it";
    "hget" 3 READ_FAST ONE "hash" Keys(hashes::hget) "The value of a field" "";
    "hgetall" 2 READ ONE "hash" Keys(hashes::hgetall) "All fields and values of a hash" "in no order; refused above 8 MiB: HSCAN reads it in parts";
    "hgetdel" -5 CHANGE_FAST ONE "hash" Keys(field_expiry::hgetdel) "The values of fields, and removes them" "as Redis 8.0 has it; refused above 8 MiB";
    "hgetex" -5 CHANGE_FAST ONE "hash" Keys(field_expiry::hgetex) "The values of fields, and sets when they expire" "as Redis 8.0 has it; refused above 8 MiB";
    "hincrby" 4 GROW_FAST ONE "hash" Keys(hashes::hincrby) "Adds a number to a field" "";
    "hincrbyfloat" 4 GROW_FAST ONE "hash" Keys(hashes::hincrbyfloat) "Adds a decimal number to a field" "in floats of 80 bits, as INCRBYFLOAT";
    "hkeys" 2 READ ONE "hash" Keys(hashes::hkeys) "All fields of a hash" "in no order; refused above 8 MiB, values included";
    "hlen" 2 READ_FAST ONE "hash" Keys(hashes::hlen) "How many fields a hash has" "";
    "hmget" -3 READ_FAST ONE "hash" Keys(hashes::hmget) "The values of fields" "refused above 8 MiB";
    "hmset" -4 GROW_FAST ONE "hash" Keys(hashes::hmset) "Sets fields of a hash" "";
    "hpersist" -5 CHANGE_FAST ONE "hash" Keys(field_expiry::hpersist) "Takes the expiry of fields away" "as Redis 7.4 has it";
    "hpexpire" -6 GROW_FAST ONE "hash" Keys(field_expiry::hpexpire) "Sets milliseconds to live of fields" "as Redis 7.4 has it";
    "hpexpireat" -6 GROW_FAST ONE "hash" Keys(field_expiry::hpexpireat) "Sets the end of the life of fields" "as Redis 7.4 has it";
    "hpexpiretime" -5 READ_FAST ONE "hash" Keys(field_expiry::hpexpiretime) "When fields expire, in milliseconds since 1970" "as Redis 7.4 has it";
    "hpttl" -5 READ_FAST ONE "hash" Keys(field_expiry::hpttl) "Milliseconds to live of fields" "as Redis 7.4 has it";
    "hrandfield" -2 READ ONE "hash" Keys(hashes::hrandfield) "Fields of a hash at random" "refused above 8 MiB, values included";
    "hscan" -3 READ ONE "hash" Keys(hashes::hscan) "Walks through the fields of a hash" "of small ones too it tells about COUNT a call";
    "hset" -4 GROW_FAST ONE "hash" Keys(hashes::hset) "Sets fields of a hash" "";
    "hsetex" -6 GROW_FAST ONE "hash" Keys(field_expiry::hsetex) "Sets fields and when they expire" "as Redis 8.0 has it; all or none";
    "hsetnx" 4 GROW_FAST ONE "hash" Keys(hashes::hsetnx) "Sets a field that is not there" "";
    "hstrlen" 3 READ_FAST ONE "hash" Keys(hashes::hstrlen) "The length of the value of a field" "";
    "httl" -5 READ_FAST ONE "hash" Keys(field_expiry::httl) "Seconds to live of fields" "as Redis 7.4 has it";
    "hvals" 2 READ ONE "hash" Keys(hashes::hvals) "All values of a hash" "in no order; refused above 8 MiB, names included";
    "incr" 2 GROW_FAST ONE "string" Keys(strings::incr) "Adds 1 to a counter" "";
    "incrby" 3 GROW_FAST ONE "string" Keys(strings::incrby) "Adds a number to a counter" "";
    "incrbyfloat" 3 GROW_FAST ONE "string" Keys(strings::incrbyfloat) "Adds a decimal number" "atomic; in floats of 80 bits, as Redis on x86-64, on every machine";
    "info" -1 CONNECTION NONE "server" Step(server::of_server) "Facts about the server" "of one gateway: Server, Clients, Memory, Persistence, Stats, Replication, CPU, Cluster, Keyspace";
    "keys" 2 READ NONE "generic" Step(server::keys) "All keys that match" "walks all keys: not of one moment; refused above 64 MiB of keys; not inside MULTI";
    "latency" -2 CONTAINER NONE "server" Local(server::latency) "Latency events" "HELP HISTORY LATEST RESET: always empty";
    "lcs" -3 READ TWO "string" Keys(lcs::lcs) "The longest common subsequence" "each key for itself; up to 16 Mi cells; of another type answered with WRONGTYPE";
    "lindex" 3 READ ONE "list" Keys(lists::lindex) "An element of a list" "";
    "linsert" 5 GROW ONE "list" Keys(lists::linsert) "Puts an element beside another one" "looks through 1,000,000 elements at most";
    "llen" 2 READ_FAST ONE "list" Keys(lists::llen) "How many elements a list has" "";
    "lmove" 5 GROW TWO "list" Keys(lists::lmove) "Moves an element from an end of a list to an end of another one" "both keys on one shard";
    "lmpop" -4 CHANGE_COUNTED NONE "list" Keys(lists::lmpop) "Takes elements off an end of the first list that has any" "all keys on one shard";
    "lpop" -2 CHANGE_FAST ONE "list" Keys(lists::lpop) "Takes elements off the beginning of a list" "refused above 8 MiB";
    "lpos" -3 READ ONE "list" Keys(lists::lpos) "Finds elements of a list" "looks through 1,000,000 elements at most";
    "lpush" -3 GROW_FAST ONE "list" Keys(lists::lpush) "Adds elements at the beginning of a list" "";
    "lpushx" -3 GROW_FAST ONE "list" Keys(lists::lpushx) "Adds elements at the beginning of a list that is there" "";
    "lrange" 4 READ ONE "list" Keys(lists::lrange) "Elements of a list" "refused above 8 MiB: read it in parts";
    "lrem" 4 CHANGE ONE "list" Keys(lists::lrem) "Removes elements that are the same as a value" "looks through 1,000,000 elements at most, removes 100,000 at most";
    "lset" 4 GROW ONE "list" Keys(lists::lset) "Overwrites an element of a list" "";
    "ltrim" 4 CHANGE ONE "list" Keys(lists::ltrim) "Removes all but a part of a list" "refused where more than 100,000 elements would go and more than 100,000 stay";
    "memory" -2 CONTAINER (2, 2, 1) "server" Keys(keys::memory) "How much room a key takes up" "HELP USAGE; about, in the store rather than in memory";
    "mget" -2 READ_FAST ALL "string" Keys(strings::mget) "The values of keys" "each key for itself; refused above 64 MiB";
    "move" 3 CHANGE_FAST ONE "generic" Here(keys::move_key) "Moves a key to another database" "always refused: databases are on different shards; DUMP, RESTORE and DEL move a key step by step";
    "mset" -3 GROW (1, -1, 2) "string" Keys(strings::mset) "Sets keys" "each key for itself; atomic inside MULTI";
    "msetnx" -3 GROW (1, -1, 2) "string" Keys(strings::msetnx) "Sets keys if none is there" "atomic; all keys on one shard; not inside MULTI";
    "multi" 1 TRANSACTION NONE "transactions" Local(server::multi) "Begins a transaction" "up to 10,000 commands and 16 MiB";
    "object" -2 CONTAINER (2, 2, 1) "generic" Keys(keys::object) "How a key is kept" "ENCODING FREQ HELP IDLETIME REFCOUNT, as Redis would answer; IDLETIME is always 0";
    "persist" 2 CHANGE_FAST ONE "generic" Keys(keys::persist) "Takes a key's expiry away" "";
    "pexpire" -3 CHANGE_FAST ONE "generic" Keys(keys::pexpire) "Sets milliseconds to live" "";
    "pexpireat" -3 CHANGE_FAST ONE "generic" Keys(keys::pexpireat) "Sets the end of a key's life" "";
    "pexpiretime" 2 READ_FAST ONE "generic" Keys(keys::pexpiretime) "When a key expires, in milliseconds since 1970" "";
    "pfadd" -2 GROW_FAST ONE "hyperloglog" Keys(hyperloglogs::pfadd) "Adds elements to a HyperLogLog" "";
    "pfcount" -2 READ ALL "hyperloglog" Keys(hyperloglogs::pfcount) "About how many elements were added to HyperLogLogs" "all keys on one shard; writes nothing, so the bytes of the value stay as they are";
    "pfmerge" -2 GROW ALL "hyperloglog" Keys(hyperloglogs::pfmerge) "Adds HyperLogLogs to another one" "all keys on one shard";
    "ping" -1 FAST NONE "connection" Local(server::ping) "Whether the server answers" "";
    "psetex" 4 GROW ONE "string" Keys(strings::psetex) "Sets a key for milliseconds" "";
    "pttl" 2 READ_FAST ONE "generic" Keys(keys::pttl) "Milliseconds to live" "";
    "quit" -1 ALWAYS NONE "connection" Step(server::quit) "Closes the connection" "";
    "randomkey" 1 READ NONE "generic" Step(server::randomkey) "Any key" "not evenly distributed; not inside MULTI";
    "rename" 3 CHANGE TWO "generic" Keys(keys::rename) "Renames a key" "both keys on one shard";
    "renamenx" 3 CHANGE_FAST TWO "generic" Keys(keys::renamenx) "Renames a key if the new name is free" "both keys on one shard";
    "reset" 1 ALWAYS NONE "connection" Step(server::reset) "Resets the connection" "";
    "restore" -4 GROW ONE "generic" Keys(keys::restore) "Sets a key from its stored form" "from dumps of Redis up to 7.4; refused above 100,000 elements or 8 MiB, and for fields that expire";
    "rpop" -2 CHANGE_FAST ONE "list" Keys(lists::rpop) "Takes elements off the end of a list" "refused above 8 MiB";
    "rpoplpush" 3 GROW TWO "list" Keys(lists::rpoplpush) "Moves the last element of a list to the beginning of another one" "both keys on one shard";
    "rpush" -3 GROW_FAST ONE "list" Keys(lists::rpush) "Adds elements at the end of a list" "";
    "rpushx" -3 GROW_FAST ONE "list" Keys(lists::rpushx) "Adds elements at the end of a list that is there" "";
    "sadd" -3 GROW_FAST ONE "set" Keys(sets::sadd) "Adds members to a set" "";
    "save" 1 SAVE NONE "server" Local(server::save) "Saves everything" "at once: every answered write is on disk already";
    "scan" -2 READ NONE "generic" Step(server::scan) "Walks all keys" "a key that is there all the while is seen; cursors are good at every gateway; not inside MULTI";
    "scard" 2 READ_FAST ONE "set" Keys(sets::scard) "How many members a set has" "";
    "sdiff" -2 READ ALL "set" Keys(sets::sdiff) "The members of a set that other sets don't have" "all keys on one shard; refused above 8 MiB";
    "sdiffstore" -3 GROW ALL "set" Keys(sets::sdiffstore) "Stores the members of a set that other sets don't have" "all keys on one shard; refused above 100,000 members or 8 MiB";
    "select" 2 CONNECTION_FAST NONE "connection" Step(server::select) "Chooses a database" "0 is the keyspace `default`, 1 to 15 are `db1` to `db15`, made when first written to; inside MULTI only the one that is selected";
    "set" -3 GROW ONE "string" Keys(strings::set) "Sets a key" "all options";
    "setbit" 4 GROW ONE "bitmap" Keys(bits::setbit) "Sets or clears a bit" "";
    "setex" 4 GROW ONE "string" Keys(strings::setex) "Sets a key for seconds" "";
    "setnx" 3 GROW_FAST ONE "string" Keys(strings::setnx) "Sets a key that isn't there" "";
    "setrange" 4 GROW ONE "string" Keys(strings::setrange) "Overwrites a part of a string" "";
    "shutdown" -1 SHUTDOWN NONE "server" Local(server::shutdown) "Stops the server" "always refused: a gateway is stopped by whoever has started it";
    "sinter" -2 READ ALL "set" Keys(sets::sinter) "The members that all sets have" "all keys on one shard; refused above 8 MiB";
    "sintercard" -3 READ_COUNTED NONE "set" Keys(sets::sintercard) "Counts the members that all sets have" "all keys on one shard";
    "sinterstore" -3 GROW ALL "set" Keys(sets::sinterstore) "Stores the members that all sets have" "all keys on one shard; refused above 100,000 members or 8 MiB";
    "sismember" 3 READ_FAST ONE "set" Keys(sets::sismember) "Whether a set has a member" "";
    "slowlog" -2 CONTAINER NONE "server" Local(server::slowlog) "Slow commands" "GET HELP LEN RESET: always empty";
    "smembers" 2 READ ONE "set" Keys(sets::smembers) "All members of a set" "in no order; refused above 8 MiB: SSCAN reads it in parts";
    "smismember" -3 READ_FAST ONE "set" Keys(sets::smismember) "Which members a set has" "";
    "smove" 4 CHANGE_FAST TWO "set" Keys(sets::smove) "Moves a member to another set" "both keys on one shard";
    "sort" -2 GROW_COUNTED ONE "generic" Keys(sort::sort) "Sorts a list, a set or a sorted set" "of up to 100,000 elements; BY and GET take no patterns; with STORE both keys on one shard";
    "sort_ro" -2 READ_COUNTED ONE "generic" Keys(sort::sort_ro) "Sorts a list, a set or a sorted set" "as SORT, without STORE";
    "spop" -2 CHANGE_FAST ONE "set" Keys(sets::spop) "Removes members of a set at random" "refused above 100,000 members or 8 MiB, unless it is all of them";
    "srandmember" -2 READ ONE "set" Keys(sets::srandmember) "Members of a set at random" "refused above 8 MiB";
    "srem" -3 CHANGE_FAST ONE "set" Keys(sets::srem) "Removes members of a set" "";
    "sscan" -3 READ ONE "set" Keys(sets::sscan) "Walks through the members of a set" "of small ones too it tells about COUNT a call";
    "strlen" 2 READ_FAST ONE "string" Keys(strings::strlen) "The length of a string" "";
    "substr" 4 READ ONE "string" Keys(strings::getrange) "A part of a string" "";
    "sunion" -2 READ ALL "set" Keys(sets::sunion) "The members of all sets together" "all keys on one shard; refused above 8 MiB";
    "sunionstore" -3 GROW ALL "set" Keys(sets::sunionstore) "Stores the members of all sets together" "all keys on one shard; refused above 100,000 members or 8 MiB";
    "swapdb" 3 CHANGE_FAST NONE "server" Keys(keys::swap_db) "Swaps two databases" "always refused: their shards can't change names at one moment";
    "time" 1 CONNECTION_FAST NONE "server" Local(server::time) "The gateway's clock" "in steps of a millisecond";
    "touch" -2 READ_FAST ALL "generic" Keys(keys::exists) "Whether keys are there" "each key for itself";
    "ttl" 2 READ_FAST ONE "generic" Keys(keys::ttl) "Seconds to live" "";
    "type" 2 READ_FAST ONE "generic" Keys(keys::kind) "The type of a key" "";
    "unlink" -2 CHANGE_FAST ALL "generic" Keys(keys::del) "Removes keys" "each key for itself";
    "unwatch" 1 TRANSACTION NONE "transactions" Local(server::unwatch) "Forgets watched keys" "";
    "wait" 3 NO_SCRIPT NONE "generic" Step(server::of_server) "How many replicas have the writes" "answered at once: an answered write is on a majority already, which is `connected_slaves` in INFO beside the leader";
    "watch" -2 TRANSACTION ALL "transactions" Step(server::watch) "Lets a transaction fail if keys change" "by version; a key that comes and goes in between has not changed";
    "zadd" -4 GROW_FAST ONE "sorted-set" Keys(zsets::zadd) "Sets scores of members" "up to 100,000 a command";
    "zcard" 2 READ_FAST ONE "sorted-set" Keys(zsets::zcard) "How many members a sorted set has" "";
    "zcount" 4 READ_FAST ONE "sorted-set" Keys(zsets::zcount) "Counts members by score" "";
    "zdiff" -3 READ_COUNTED NONE "sorted-set" Keys(zsets::zdiff) "The members of a sorted set that others don't have" "all keys on one shard; refused above 8 MiB";
    "zdiffstore" -4 GROW_COUNTED ONE "sorted-set" Keys(zsets::zdiffstore) "Stores the members of a sorted set that others don't have" "all keys on one shard; refused above 100,000 members";
    "zincrby" 4 GROW_FAST ONE "sorted-set" Keys(zsets::zincrby) "Adds to the score of a member" "";
    "zinter" -3 READ_COUNTED NONE "sorted-set" Keys(zsets::zinter) "The members that all sorted sets have" "all keys on one shard; refused above 8 MiB";
    "zintercard" -3 READ_COUNTED NONE "sorted-set" Keys(zsets::zintercard) "Counts the members that all sorted sets have" "all keys on one shard";
    "zinterstore" -4 GROW_COUNTED ONE "sorted-set" Keys(zsets::zinterstore) "Stores the members that all sorted sets have" "all keys on one shard; refused above 100,000 members";
    "zlexcount" 4 READ_FAST ONE "sorted-set" Keys(zsets::zlexcount) "Counts members by name" "";
    "zmpop" -4 CHANGE_COUNTED NONE "sorted-set" Keys(zsets::zmpop) "Removes members from an end of the first sorted set that has any" "all keys on one shard; refused above 100,000 members or 8 MiB";
    "zmscore" -3 READ_FAST ONE "sorted-set" Keys(zsets::zmscore) "The scores of members" "";
    "zpopmax" -2 CHANGE_FAST ONE "sorted-set" Keys(zsets::zpopmax) "Removes the members with the highest scores" "refused above 100,000 members or 8 MiB";
    "zpopmin" -2 CHANGE_FAST ONE "sorted-set" Keys(zsets::zpopmin) "Removes the members with the lowest scores" "refused above 100,000 members or 8 MiB";
    "zrandmember" -2 READ ONE "sorted-set" Keys(zsets::zrandmember) "Members of a sorted set at random" "refused above 8 MiB";
    "zrange" -4 READ ONE "sorted-set" Keys(zsets::zrange) "Members by rank, score or name" "refused above 8 MiB";
    "zrangebylex" -4 READ ONE "sorted-set" Keys(zsets::zrangebylex) "Members by name" "refused above 8 MiB";
    "zrangebyscore" -4 READ ONE "sorted-set" Keys(zsets::zrangebyscore) "Members by score" "refused above 8 MiB";
    "zrangestore" -5 GROW TWO "sorted-set" Keys(zsets::zrangestore) "Stores members by rank, score or name" "both keys on one shard; refused above 100,000 members";
    "zrank" -3 READ_FAST ONE "sorted-set" Keys(zsets::zrank) "How many members have a lower score" "with WITHSCORE of Redis 7.2";
    "zrem" -3 CHANGE_FAST ONE "sorted-set" Keys(zsets::zrem) "Removes members of a sorted set" "up to 100,000 a command";
    "zremrangebylex" 4 CHANGE ONE "sorted-set" Keys(zsets::zremrangebylex) "Removes members by name" "refused above 100,000 members, unless it is all of them";
    "zremrangebyrank" 4 CHANGE ONE "sorted-set" Keys(zsets::zremrangebyrank) "Removes members by rank" "refused above 100,000 members, unless it is all of them";
    "zremrangebyscore" 4 CHANGE ONE "sorted-set" Keys(zsets::zremrangebyscore) "Removes members by score" "refused above 100,000 members, unless it is all of them";
    "zrevrange" -4 READ ONE "sorted-set" Keys(zsets::zrevrange) "Members by rank, from the last one on" "refused above 8 MiB";
    "zrevrangebylex" -4 READ ONE "sorted-set" Keys(zsets::zrevrangebylex) "Members by name, from the last one on" "refused above 8 MiB";
    "zrevrangebyscore" -4 READ ONE "sorted-set" Keys(zsets::zrevrangebyscore) "Members by score, from the last one on" "refused above 8 MiB";
    "zrevrank" -3 READ_FAST ONE "sorted-set" Keys(zsets::zrevrank) "How many members have a higher score" "with WITHSCORE of Redis 7.2";
    "zscan" -3 READ ONE "sorted-set" Keys(zsets::zscan) "Walks through the members of a sorted set" "of small ones too it tells about COUNT a call";
    "zscore" 3 READ_FAST ONE "sorted-set" Keys(zsets::zscore) "The score of a member" "";
    "zunion" -3 READ_COUNTED NONE "sorted-set" Keys(zsets::zunion) "The members of all sorted sets together" "all keys on one shard; refused above 8 MiB";
    "zunionstore" -4 GROW_COUNTED ONE "sorted-set" Keys(zsets::zunionstore) "Stores the members of all sorted sets together" "all keys on one shard; refused above 100,000 members";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_found_in_any_case() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
        for spec in COMMANDS {
            assert_eq!(
                find(spec.name.to_uppercase().as_bytes()).map(|found| found.name),
                Some(spec.name)
            );
        }
        assert!(find(b"nonsense").is_none() && find(b"").is_none() && find(&[b'x'; 100]).is_none());
    }

    #[test]
    fn keys_are_found_among_the_words() {
        let keys = |line: &str| {
            let args: Vec<Bytes> =
                line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
            find(&args[0]).unwrap().keys_of(&args).join(&b' ')
        };
        assert_eq!(keys("mset a 1 b 2"), b"a b");
        assert_eq!(keys("get a"), b"a");
        assert_eq!(keys("bitop and d a b"), b"d a b");
        assert_eq!(keys("ping x"), b"");
        assert_eq!(keys("sintercard 2 a b limit 3"), b"a b");
    }

    #[test]
    fn a_wrong_number_of_keys_names_none() {
        for count in ["0", "-1", "4", "x", "9223372036854775807", "9223372036854775808"] {
            let args =
                ["sintercard", count, "a", "b", "c"].map(|word| Bytes::from(word.to_owned()));
            assert!(find(b"sintercard").unwrap().keys_of(&args).is_empty(), "{count}");
        }
    }
}
