//! Times of the hot pieces. `make bench-criterion`; `cargo bench -p kvdb-bench -- routing` for one.

mod pieces;

use criterion::{Criterion, criterion_group, criterion_main};
use kvdb_wal::FileDisk;
use kvdb_wal::sim_disk::SimDisk;
use pieces::{Append, Apply, Codec, Resp, Routing};

fn hot(criterion: &mut Criterion) {
    let mut routing = Routing::new();
    criterion.bench_function("routing: a key among 1,000 shards", |b| b.iter(|| routing.step()));
    let mut codec = Codec::new();
    criterion.bench_function("codec: 16 puts there and back", |b| b.iter(|| codec.step()));
    let mut resp = Resp::new();
    criterion.bench_function("resp: 16 SETs parsed", |b| b.iter(|| resp.step()));
    let mut append = Append::new(SimDisk::new());
    criterion.bench_function("wal: 16 puts to memory", |b| b.iter(|| append.step()));
    let folder = tempfile::tempdir().expect("there is room");
    let mut append = Append::new(FileDisk::open(folder.path()).expect("there is room"));
    criterion.bench_function("wal: 16 puts synced to disk", |b| b.iter(|| append.step()));
    let folder = tempfile::tempdir().expect("there is room");
    let mut apply = Apply::new(folder.path());
    criterion.bench_function("apply: 16 puts", |b| b.iter(|| apply.step()));
}

criterion_group! {
    name = pieces_of_a_write;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_secs(1))
        .measurement_time(std::time::Duration::from_secs(3))
        .sample_size(30);
    targets = hot
}
criterion_main!(pieces_of_a_write);
