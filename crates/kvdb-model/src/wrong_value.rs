//! What can be wrong with a value, in the words of [`crate::Refusal::WrongValue`]. They are the
//! same on every node and travel as text, so a client can tell them apart.

/// An increment of something that isn't a decimal integer of 64 bits.
pub const NOT_A_NUMBER: &str = "the value is not an integer or is out of range";
/// An increment that leads beyond 64 bits.
pub const OVERFLOW: &str = "the increment or decrement would overflow";
/// A decimal increment of something that isn't a decimal number.
pub const NOT_A_FLOAT: &str = "the value is not a decimal number";
/// A decimal increment that leads to no number.
pub const NOT_FINITE: &str = "the increment would produce NaN or infinity";
/// A change that would make a value longer than values may be.
pub const TOO_LONG: &str = "the value would be longer than 8 MiB";
/// A change of a key that must exist.
pub const NO_SUCH_KEY: &str = "the key does not exist";

/// A command on a key that holds another type.
pub const WRONG_TYPE: &str = "the key holds another type of value";
/// An increment of a field that isn't a decimal integer of 64 bits.
pub const FIELD_NOT_A_NUMBER: &str = "the value of the field is not an integer";
/// A decimal increment of a field that isn't a decimal number.
pub const FIELD_NOT_A_FLOAT: &str = "the value of the field is not a decimal number";
/// A decimal increment by what is no finite number.
pub const DELTA_NOT_FINITE: &str = "the increment is NaN or infinity";
/// A read of more than one answer holds.
pub const REPLY_TOO_LARGE: &str = "the reply would be larger than 8 MiB; read it in parts";
/// A change of more than one command may change.
pub const TOO_MANY_ELEMENTS: &str =
    "more than 100,000 elements would be changed or copied: too many for one command";
/// A place in a list that it doesn't have.
pub const NO_SUCH_PLACE: &str = "the list has no element at this index";
/// A search through more than one command may look at.
pub const TOO_MANY_TO_SEARCH: &str =
    "the list has more than 1,000,000 elements to look through: too many for one command";

/// A command whose result is more than one command may write.
pub const RESULT_TOO_LARGE: &str =
    "the result would have more than 100,000 members or 8 MiB: too much for one command";
/// A combination of sets that looks at more members than one command may.
pub const TOO_MUCH_TO_COMBINE: &str =
    "more than 1,000,000 members would have to be looked at: combine smaller sets";
/// An increment of a score that leads to no number.
pub const NOT_A_SCORE: &str = "the resulting score is not a number";

/// A search around a member that isn't there.
pub const NO_SUCH_MEMBER: &str = "the set has no such member to search around";
/// A search of an area with more members than one command may look at.
pub const TOO_WIDE: &str =
    "more than 1,000,000 members would have to be looked at: search a smaller area";

/// A sort by number of what is none.
pub const NOT_A_WEIGHT: &str = "an element to be sorted by number is not a number";

/// A command that would hold too much in memory.
pub const TOO_MUCH_READ: &str = "the command would read more than 128 MiB of elements; use smaller ranges, or keep less under one key";

/// A command on HyperLogLogs on a string that is none.
pub const NOT_A_HYPERLOGLOG: &str = "the value is not a HyperLogLog";
/// A HyperLogLog whose registers are too few, too many, or such as no elements make.
pub const DAMAGED_HYPERLOGLOG: &str = "the HyperLogLog is damaged";
/// A dump of a hash that has fields with an expiry of their own.
pub const FIELDS_EXPIRE: &str =
    "the hash has fields that expire, which a dump can't hold; HPERSIST takes their expiry away";

/// All of them. Their places are stored: only ever add at the end.
pub const ALL: [&str; 24] = [
    NOT_A_NUMBER,
    OVERFLOW,
    NOT_A_FLOAT,
    NOT_FINITE,
    TOO_LONG,
    NO_SUCH_KEY,
    WRONG_TYPE,
    FIELD_NOT_A_NUMBER,
    FIELD_NOT_A_FLOAT,
    REPLY_TOO_LARGE,
    TOO_MANY_ELEMENTS,
    DELTA_NOT_FINITE,
    NO_SUCH_PLACE,
    TOO_MANY_TO_SEARCH,
    RESULT_TOO_LARGE,
    TOO_MUCH_TO_COMBINE,
    NOT_A_SCORE,
    NO_SUCH_MEMBER,
    TOO_WIDE,
    NOT_A_WEIGHT,
    TOO_MUCH_READ,
    NOT_A_HYPERLOGLOG,
    DAMAGED_HYPERLOGLOG,
    FIELDS_EXPIRE,
];

/// The one with this text.
pub fn known(text: &str) -> Option<&'static str> {
    ALL.into_iter().find(|known| *known == text)
}

/// Its place in [`ALL`].
pub fn code_of(text: &str) -> u8 {
    ALL.iter().position(|known| *known == text).unwrap_or(0) as u8
}
