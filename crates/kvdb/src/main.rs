//! The `kvdb` binary: every role and the command line.
fn main() {}
