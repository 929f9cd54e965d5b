//! A collection in parts: how `export` reads it and `import` writes it.

use crate::exit::Failure;
use crate::output::printable;
use crate::rows::{Kind, Part};
use bytes::Bytes;
use kvdb_client::{Client, Reply};
use kvdb_model::wrong_value::REPLY_TOO_LARGE;
use std::collections::BTreeMap;

/// Elements that are asked for at a time. (A large one comes in smaller parts of its own.)
const ELEMENTS: usize = 1000;

/// Reads a collection, part after part.
pub(super) struct Parts<'a> {
    client: &'a Client,
    key: Bytes,
    kind: Kind,
    at: u64,
    /// Of a walk: where to go on; `None` at the end.
    cursor: Option<Bytes>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(client: &'a Client, key: Bytes, kind: Kind) -> Self {
        Parts { client, key, kind, at: 0, cursor: Some(Bytes::from_static(b"0")) }
    }

    /// The next part, if there is one. A key that has gone meanwhile has none.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, Failure> {
        while let Some(cursor) = self.cursor.take() {
            let items = match self.kind {
                Kind::List => self.range().await?,
                Kind::Hash => self.walk("HSCAN", cursor).await?,
                Kind::Set => self.walk("SSCAN", cursor).await?,
                Kind::Zset => self.walk("ZSCAN", cursor).await?,
            };
            let (items, ttls_ms) = match self.kind {
                Kind::Hash if !items.is_empty() => self.lifetimes(items).await?,
                _ => (items, vec![]),
            };
            if !items.is_empty() {
                let part = Part { kind: self.kind, at: self.at, items, ttls_ms };
                self.at += (part.items.len() / self.kind.width()) as u64;
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    async fn range(&mut self) -> Result<Vec<Bytes>, Failure> {
        let mut count = ELEMENTS;
        loop {
            let last = self.at + count as u64 - 1;
            let words = ["LRANGE".into(), self.key.clone(), number(self.at), number(last)];
            match self.client.execute(words).await? {
                // It has large elements.
                Reply::Error(problem) if count > 1 && problem.contains(REPLY_TOO_LARGE) => {
                    count /= 10;
                }
                reply => {
                    let items = items_of(&self.key, reply)?;
                    if items.len() == count {
                        self.cursor = Some(Bytes::new());
                    }
                    return Ok(items);
                }
            }
        }
    }

    /// Fields and values with how long each field lives, in milliseconds (0 for ever); nothing where all
    /// do for ever. Those that have gone since they were read are left out.
    async fn lifetimes(&self, items: Vec<Bytes>) -> Result<(Vec<Bytes>, Vec<u64>), Failure> {
        let (pairs, _) = items.as_chunks::<2>();
        let mut words = vec!["HPTTL".into(), self.key.clone(), "FIELDS".into()];
        words.push(number(pairs.len() as u64));
        words.extend(pairs.iter().map(|[field, _]| field.clone()));
        let told = items_or_error(&self.key, self.client.execute(words).await?)?;
        let (mut there, mut ttls_ms) = (Vec::with_capacity(items.len()), Vec::new());
        for (pair, told) in pairs.iter().zip(told) {
            let ttl_ms = match told {
                Reply::Integer(left @ 0..) => left.unsigned_abs().max(1),
                Reply::Integer(-1) => 0,
                _ => continue,
            };
            there.extend_from_slice(pair);
            ttls_ms.push(ttl_ms);
        }
        let expires = ttls_ms.iter().any(|ttl_ms| *ttl_ms > 0);
        Ok((there, if expires { ttls_ms } else { vec![] }))
    }

    async fn walk(&mut self, command: &'static str, cursor: Bytes) -> Result<Vec<Bytes>, Failure> {
        let count = number(ELEMENTS as u64);
        let words = [command.into(), self.key.clone(), cursor, "COUNT".into(), count];
        let mut parts = items_or_error(&self.key, self.client.execute(words).await?)?.into_iter();
        let cursor = parts.next().and_then(|cursor| cursor.bytes().cloned());
        self.cursor = cursor.filter(|cursor| cursor != "0");
        items_of(&self.key, parts.next().unwrap_or(Reply::Nil))
    }
}

/// Writes a part, and lets its key live so long from now on. To write it again does no harm.
pub(super) async fn write(
    client: &Client,
    key: &Bytes,
    part: &Part,
    ttl_ms: Option<u64>,
) -> Result<(), Failure> {
    let done =
        async |words: Vec<Bytes>| items_or_error(key, client.execute(words).await?).map(|_| ());
    if part.at == 0 {
        done(vec!["DEL".into(), key.clone()]).await?;
    } else if part.kind == Kind::List {
        // What stands there already from an earlier try.
        let last = number(part.at - 1);
        done(vec!["LTRIM".into(), key.clone(), number(0), last]).await?;
    }
    if !part.items.is_empty() {
        let mut words = vec![Bytes::from_static(command_of(part.kind)), key.clone()];
        match part.kind {
            // Scores stand before their members.
            Kind::Zset => words.extend(
                part.items
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .flat_map(|[m, score]| [score.clone(), m.clone()]),
            ),
            _ => words.extend(part.items.iter().cloned()),
        }
        done(words).await?;
    }
    for (ttl_ms, fields) in by_lifetime(part) {
        let count = number(fields.len() as u64);
        let mut words =
            vec!["HPEXPIRE".into(), key.clone(), number(ttl_ms), "FIELDS".into(), count];
        words.extend(fields);
        done(words).await?;
    }
    if let Some(ttl_ms) = ttl_ms {
        done(vec!["PEXPIRE".into(), key.clone(), number(ttl_ms)]).await?;
    }
    Ok(())
}

/// Fields that expire by themselves, those with the same lifetime together.
fn by_lifetime(part: &Part) -> BTreeMap<u64, Vec<Bytes>> {
    let mut fields: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
    for ([field, _], ttl_ms) in part.items.as_chunks::<2>().0.iter().zip(&part.ttls_ms) {
        if *ttl_ms > 0 {
            fields.entry(*ttl_ms).or_default().push(field.clone());
        }
    }
    fields
}

fn command_of(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Hash => b"HSET",
        Kind::List => b"RPUSH",
        Kind::Set => b"SADD",
        Kind::Zset => b"ZADD",
    }
}

fn number(number: u64) -> Bytes {
    Bytes::from(number.to_string())
}

fn items_or_error(key: &[u8], reply: Reply) -> Result<Vec<Reply>, Failure> {
    match reply {
        Reply::Error(problem) => {
            Err(Failure::Refused(format!("key {}: {problem}", printable(key))))
        }
        reply => Ok(reply.into_items()),
    }
}

/// Items as bytes; a score is text as Redis prints it.
fn items_of(key: &[u8], reply: Reply) -> Result<Vec<Bytes>, Failure> {
    let items = items_or_error(key, reply)?.into_iter().flat_map(|item| match item {
        Reply::Bytes(bytes) => vec![bytes],
        Reply::Number(number) => vec![Bytes::from(number.to_string())],
        // Pairs.
        pair => pair.into_items().iter().filter_map(|item| item.bytes().cloned()).collect(),
    });
    Ok(items.collect())
}
