//! `kvdb redis`

use super::client;
use super::get::FreshnessArgs;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, printable, text_or_base64};
use bytes::Bytes;
use kvdb_client::Reply;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// Run a Redis command on keys.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb redis HSET user:1 name Ada born 1815
  kvdb redis HGETALL user:1
  kvdb redis LRANGE queue 0 -1
  kvdb --keyspace app redis SADD tags a b
  kvdb redis --consistency bounded --max-staleness 5s ZRANGE board 0 9

Commands on keys, with Redis's arguments and answers; docs/redis.md lists them. Options of kvdb itself \
stand before the command's name. Options for how fresh an answer must be are for commands that only read. --json \
prints the answer as JSON: bytes that aren't UTF-8 as \
{\"b64\": …}. An error that the command answers with ends with exit code 3.")]
pub(crate) struct Args {
    #[command(flatten)]
    freshness: FreshnessArgs,
    /// Command and its arguments
    #[arg(
        value_name = "WORD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<OsString>,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let words = command.words.into_iter().map(|word| Bytes::from(word.into_vec()));
    let reply = client(args)?.execute_with(words, command.freshness.options()).await?.reply;
    if let Reply::Error(problem) = reply {
        return Err(Failure::Refused(problem));
    }
    let mut output = Output::new();
    match args.json {
        true => output.json(&json!({ "reply": to_json(&reply) }))?,
        false => {
            let mut text = String::new();
            show(&reply, 0, &mut text);
            output.line(text.trim_end())?;
        }
    }
    output.finish()
}

fn to_json(reply: &Reply) -> Value {
    let list = |items: &[Reply]| items.iter().map(to_json).collect();
    match reply {
        Reply::Nil => Value::Null,
        Reply::Status(text) => text.as_str().into(),
        Reply::Error(problem) => json!({ "error": problem }),
        Reply::Integer(number) => (*number).into(),
        Reply::Number(number) if number.is_finite() => (*number).into(),
        Reply::Number(number) => number.to_string().into(),
        Reply::Bytes(bytes) => text_or_base64(bytes),
        Reply::List(items) | Reply::Set(items) => Value::Array(list(items)),
        // Names may be bytes, and may repeat what another one is as text.
        Reply::Map(pairs) => {
            let pair = |(key, value): &(Reply, Reply)| json!([to_json(key), to_json(value)]);
            Value::Array(pairs.iter().map(pair).collect())
        }
    }
}

/// As people are used to see it: lists numbered, one part a line.
fn show(reply: &Reply, depth: usize, out: &mut String) {
    let numbered = |parts: Vec<String>, out: &mut String| {
        if parts.is_empty() {
            out.push_str("(empty)\n");
        }
        let width = parts.len().to_string().len();
        for (place, part) in parts.iter().enumerate() {
            if place > 0 {
                out.push_str(&"   ".repeat(depth));
            }
            out.push_str(&format!("{:>width$}) {part}", place + 1));
        }
    };
    let part = |reply: &Reply| {
        let mut text = String::new();
        show(reply, depth + 1, &mut text);
        text
    };
    match reply {
        Reply::Nil => out.push_str("(nil)\n"),
        Reply::Status(text) => out.push_str(&format!("{text}\n")),
        Reply::Error(problem) => out.push_str(&format!("(error) {problem}\n")),
        Reply::Integer(number) => out.push_str(&format!("(integer) {number}\n")),
        Reply::Number(number) => out.push_str(&format!("(double) {number}\n")),
        Reply::Bytes(bytes) => {
            out.push_str(&format!("\"{}\"\n", printable(bytes).replace('"', "\\\"")))
        }
        Reply::List(items) | Reply::Set(items) => {
            numbered(items.iter().map(part).collect(), out);
        }
        Reply::Map(pairs) => {
            let line = |(key, value): &(Reply, Reply)| {
                format!("{} => {}", part(key).trim_end(), part(value))
            };
            numbered(pairs.iter().map(line).collect(), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Reply {
        Reply::Bytes(Bytes::from_static(text.as_bytes()))
    }

    fn shown(reply: &Reply) -> String {
        let mut out = String::new();
        show(reply, 0, &mut out);
        out
    }

    #[test]
    fn answers_are_shown_as_people_are_used_to_see_them() {
        assert_eq!(shown(&Reply::Nil), "(nil)\n");
        assert_eq!(shown(&Reply::Integer(-3)), "(integer) -3\n");
        assert_eq!(shown(&bytes("say \"hi\"\n")), "\"say \\\"hi\\\"\\n\"\n");
        assert_eq!(shown(&Reply::Set(vec![])), "(empty)\n");
        let map = Reply::Map(vec![(bytes("f"), bytes("v")), (bytes("g"), Reply::Number(1.5))]);
        assert_eq!(shown(&map), "1) \"f\" => \"v\"\n2) \"g\" => (double) 1.5\n");
        let nested = Reply::List(vec![bytes("0"), Reply::List(vec![bytes("a"), bytes("b")])]);
        assert_eq!(shown(&nested), "1) \"0\"\n2) 1) \"a\"\n   2) \"b\"\n");
    }

    #[test]
    fn what_is_not_text_is_base64_in_json() {
        let reply =
            Reply::List(vec![Reply::Bytes(Bytes::from_static(b"\xff")), bytes("a"), Reply::Nil]);
        assert_eq!(to_json(&reply).to_string(), r#"[{"b64":"/w=="},"a",null]"#);
    }
}
