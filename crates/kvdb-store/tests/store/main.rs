//! The shard from outside: stories, a model to compare with, and snapshots.

mod deadlines;
mod elements;
mod history;
mod model;
mod reads;
mod replay;
mod snapshots;
mod splits;
mod stories;
mod support;
mod transactions;
