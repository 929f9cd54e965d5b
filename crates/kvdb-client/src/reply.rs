//! What a command of the Redis vocabulary answers.

use bytes::Bytes;
use kvdb_wire::proto;
use proto::reply::Kind;

/// The reply of [`crate::Client::execute`], as typed as in version 3 of Redis's protocol.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// There is nothing.
    Nil,
    /// `OK`, or the type of a key.
    Status(String),
    /// What was wrong with the command: a code in capitals, a space, and words.
    Error(String),
    /// A number.
    Integer(i64),
    /// Bytes.
    Bytes(Bytes),
    /// A decimal number.
    Number(f64),
    /// In order.
    List(Vec<Reply>),
    /// Names and values.
    Map(Vec<(Reply, Reply)>),
    /// In no order.
    Set(Vec<Reply>),
}

impl Reply {
    pub(crate) fn from_proto(reply: proto::Reply) -> Self {
        let list = |list: proto::ReplyList| list.items.into_iter().map(Reply::from_proto).collect();
        let pair = |pair: proto::ReplyPair| {
            let part = |part: Option<proto::Reply>| part.map_or(Reply::Nil, Reply::from_proto);
            (part(pair.key), part(pair.value))
        };
        match reply.kind {
            None | Some(Kind::Nil(_)) => Reply::Nil,
            Some(Kind::Status(text)) => Reply::Status(text),
            Some(Kind::Error(text)) => Reply::Error(text),
            Some(Kind::Integer(number)) => Reply::Integer(number),
            Some(Kind::Bytes(bytes)) => Reply::Bytes(bytes),
            Some(Kind::Number(number)) => Reply::Number(number),
            Some(Kind::List(items)) => Reply::List(list(items)),
            Some(Kind::Set(items)) => Reply::Set(list(items)),
            Some(Kind::Map(map)) => Reply::Map(map.pairs.into_iter().map(pair).collect()),
        }
    }

    /// The number, if it is one.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Reply::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// The bytes, if it is any.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Reply::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// What is in it, if it is a list or a set; of a map names and values in turn.
    pub fn into_items(self) -> Vec<Reply> {
        match self {
            Reply::List(items) | Reply::Set(items) => items,
            Reply::Map(pairs) => pairs.into_iter().flat_map(|(key, value)| [key, value]).collect(),
            _ => vec![],
        }
    }
}
