//! Histories as JSON lines: what was written is what is read; what can't be is named by its line.

mod common;

use common::{Mix, Workload};
use kvdb_checker::json::{self, ReadError};
use kvdb_checker::{
    Answer, Call, ClientId, Data, Delivery, Element, EventError, History, Lane, OpId, Recorder,
    RequestId, Step, Time, Verdict, Version, WatchId, WatchRecord, check_all,
};

fn written(history: &History) -> String {
    let mut output = Vec::new();
    json::write(&mut output, history).expect("memory takes all");
    String::from_utf8(output).expect("JSON is text")
}

#[test]
fn a_history_of_everything_survives_a_file() {
    let mut recorder = Recorder::new();
    let client = ClientId(7);
    let request = RequestId { client: 7, sequence: 1 };
    let binary = Data::from(vec![0, 255, 10]);
    let put = recorder.try_request(client, request, Call::put(binary.clone(), "v"), Time(1));
    recorder.unknown(put);
    let get = recorder.call(client, Call::get(binary), Time(2));
    recorder.ok(get, Answer::Got { value: None, version: None }, Time(3));
    let key = Data::from("set");
    let add = recorder.call(client, Call::Add { key: key.clone(), element: Element(1) }, Time(4));
    recorder.ok(add, Answer::Done, Time(5));
    let members = recorder.call(client, Call::Members { key: key.clone() }, Time(6));
    recorder.ok(members, Answer::Members(vec![Element(1)]), Time(7));
    let steps = vec![Step::Append { key: key.clone(), element: Element(2) }, Step::Read { key }];
    let transaction = recorder.call(client, Call::Transaction { steps }, Time(8));
    recorder.ok(transaction, Answer::Lists(vec![vec![Element(2)]]), Time(9));
    let failed = recorder.call(client, Call::increment("n", -3), Time(10));
    recorder.fail(failed);
    let wrong = recorder.call(client, Call::increment("n", 1), Time(11));
    recorder.ok(wrong, Answer::WrongValue, Time(12));
    for delivery in [
        Delivery::Started { prefix: "a".into(), time: Time(1), after: Some(Version(4)) },
        Delivery::Event { lane: Lane(2), key: "ab".into(), value: None, version: Version(5) },
        Delivery::Progress { lane: Lane(2), version: Version(6) },
        Delivery::Gap { after: Version(6), through: Version(9) },
        Delivery::Drained { time: Time(20) },
    ] {
        recorder.watch(WatchRecord { watch: WatchId(1), delivery });
    }
    let history = recorder.finish();
    assert_eq!(json::read(written(&history).as_bytes()).unwrap(), history);
}

#[test]
fn a_random_history_survives_a_file() {
    for seed in 0..20 {
        let workload =
            Workload { seed, mix: Mix::Everything, versions: true, ..Workload::default() };
        let history = common::run(&workload);
        assert_eq!(json::read(written(&history).as_bytes()).unwrap(), history);
    }
}

#[test]
fn the_example_in_the_documentation_is_a_history() {
    let text = r#"
{"event":"call","op":0,"client":1,"time":10,"do":"put","key":"a","value":"x"}
{"event":"call","op":1,"client":2,"time":12,"do":"get","key":"a"}
{"event":"ok","op":0,"time":15,"answer":{"written":{"applied":true,"version":7}}}
{"event":"ok","op":1,"time":16,"answer":{"got":{"value":"x","version":7}}}
{"event":"call","op":2,"client":1,"time":20,"do":"put","key":"a","value":"y","condition":{"if_value":"x"}}
{"event":"unknown","op":2}
"#;
    let history = json::read(text.as_bytes()).unwrap();
    assert_eq!(history.operations().len(), 3);
    assert_eq!(check_all(&history, &Default::default()).verdict(), Verdict::Ok);
}

#[test]
fn bad_lines_are_named() {
    let call = r#"{"event":"call","op":0,"client":1,"time":10,"do":"get","key":"a"}"#;
    let read = |second: &str| json::read(format!("{call}\n{second}\n").as_bytes()).unwrap_err();
    assert!(matches!(read("{}"), ReadError::NotAnEvent { line: 2, .. }));
    assert!(matches!(read(r#"{"event":"unknown""#), ReadError::NotAnEvent { line: 2, .. }));
    for (second, expected) in [
        (call, EventError::CalledTwice(OpId(0))),
        (r#"{"event":"fail","op":9}"#, EventError::NeverCalled(OpId(9))),
        (
            r#"{"event":"ok","op":0,"time":11,"answer":"done"}"#,
            EventError::AnswerDoesNotFit(OpId(0)),
        ),
        (
            r#"{"event":"ok","op":0,"time":9,"answer":{"got":{"value":null}}}"#,
            EventError::ReturnsBeforeCall { op: OpId(0), called: Time(10), returned: Time(9) },
        ),
    ] {
        let error = read(second);
        assert!(
            matches!(&error, ReadError::Misfit { line: 2, source } if *source == expected),
            "{error}"
        );
    }
    let twice =
        format!("{call}\n{{\"event\":\"fail\",\"op\":0}}\n{{\"event\":\"unknown\",\"op\":0}}");
    let error = json::read(twice.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("line 3: operation 0 has ended before"), "{error}");
}

#[test]
#[should_panic(expected = "a history was recorded wrongly: operation 0 has ended before")]
fn recording_an_end_twice_is_a_mistake_of_the_test() {
    let mut recorder = Recorder::new();
    let op = recorder.call(ClientId(1), Call::get("a"), Time(1));
    recorder.fail(op);
    recorder.unknown(op);
}
