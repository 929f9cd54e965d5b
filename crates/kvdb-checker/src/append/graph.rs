//! Who must come before whom, and cycles in it.

use crate::append::lists::{List, Lists};
use crate::history::Time;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::fmt;

/// Why one transaction must come before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dependency {
    /// It appended right before the other.
    WriteWrite,
    /// The other read what it appended.
    WriteRead,
    /// It read before the other appended.
    ReadWrite,
    /// It returned before the other was called.
    RealTime,
}

/// What a cycle is made of, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CycleKind {
    /// Appends alone: G0, a dirty write.
    DirtyWrite {
        /// Whether real time is part of it.
        real_time: bool,
    },
    /// Appends and reads of them: G1c, circular information flow.
    CircularFlow {
        /// Whether real time is part of it.
        real_time: bool,
    },
    /// One read that missed an append: G-single; with real time: a stale read.
    SingleMiss {
        /// Whether real time is part of it.
        real_time: bool,
    },
    /// Several reads that missed appends: G2.
    SeveralMisses {
        /// Whether real time is part of it.
        real_time: bool,
    },
}

/// The cycle's transactions, by place, each with why it comes before the next.
pub(super) type Cycle = Vec<(usize, Dependency)>;

/// Transactions are the first nodes; then come nodes that only pass on: one a moment at which
/// something returns, two an append that no read has seen. They keep the number of edges linear.
pub(super) struct Graph {
    transactions: usize,
    edges: Vec<Vec<(usize, Dependency)>>,
}

/// See [`Graph::gates_to`].
struct Gates {
    up_to: Vec<usize>,
    from: Vec<usize>,
}

/// Breadth-first searches for a short cycle in one tangle, at most.
const STARTS_PER_TANGLE: usize = 64;

impl Graph {
    pub(super) fn of(lists: &Lists<'_>) -> Self {
        let transactions = lists.operations.len();
        let mut graph = Graph { transactions, edges: vec![Vec::new(); transactions] };
        for list in lists.keys.values() {
            graph.add_list(list, lists);
        }
        graph.add_real_time(lists);
        graph
    }

    fn fresh(&mut self) -> usize {
        self.edges.push(Vec::new());
        self.edges.len() - 1
    }

    fn add(&mut self, from: usize, to: usize, why: Dependency) {
        if from != to {
            self.edges[from].push((to, why));
        }
    }

    fn add_list(&mut self, list: &List, lists: &Lists<'_>) {
        let writer_at = |place: usize| list.order.get(place).and_then(|one| list.writers.get(one));
        for place in 1..list.order.len() {
            if let (Some(&first), Some(&second)) = (writer_at(place - 1), writer_at(place)) {
                self.add(first, second, Dependency::WriteWrite);
            }
        }
        let unseen = self.unseen_of(list, lists);
        if let Some(&last) = list.order.len().checked_sub(1).and_then(writer_at) {
            for writer in unseen.iter().copied() {
                self.add(last, writer, Dependency::WriteWrite);
            }
        }
        let mut gates = None;
        for (reader, read) in &list.reads {
            if !list.order.starts_with(read) {
                continue;
            }
            if let Some(&writer) = read.len().checked_sub(1).and_then(writer_at) {
                self.add(writer, *reader, Dependency::WriteRead);
            }
            // The next append by another: its own come after what it read.
            let next = (read.len()..list.order.len())
                .filter_map(writer_at)
                .find(|writer| *writer != reader);
            match next {
                Some(&writer) => self.add(*reader, writer, Dependency::ReadWrite),
                None if unseen.is_empty() => {}
                None => {
                    let gates = gates.get_or_insert_with(|| self.gates_to(&unseen));
                    self.add_all_but_itself(*reader, &unseen, gates);
                }
            }
        }
    }

    /// Two chains of nodes: the one at each place leads to all writers up to there, or from there.
    fn gates_to(&mut self, writers: &[usize]) -> Gates {
        let up_to: Vec<usize> = writers.iter().map(|_| self.fresh()).collect();
        let from: Vec<usize> = writers.iter().map(|_| self.fresh()).collect();
        for (place, writer) in writers.iter().enumerate() {
            self.add(up_to[place], *writer, Dependency::ReadWrite);
            self.add(from[place], *writer, Dependency::ReadWrite);
            if let Some(before) = place.checked_sub(1) {
                self.add(up_to[place], up_to[before], Dependency::ReadWrite);
                self.add(from[before], from[place], Dependency::ReadWrite);
            }
        }
        Gates { up_to, from }
    }

    /// The reader comes before all writers, except that its own append follows its read.
    fn add_all_but_itself(&mut self, reader: usize, writers: &[usize], gates: &Gates) {
        let (before, after) = match writers.binary_search(&reader) {
            Ok(own) => (own.checked_sub(1), own + 1),
            Err(_) => (None, 0),
        };
        let before = before.map(|place| gates.up_to[place]);
        for gate in before.into_iter().chain(gates.from.get(after).copied()) {
            self.add(reader, gate, Dependency::ReadWrite);
        }
    }

    /// Transactions that certainly appended something that no read has seen.
    fn unseen_of(&self, list: &List, lists: &Lists<'_>) -> Vec<usize> {
        let seen: FxHashSet<_> = list.order.iter().copied().collect();
        let mut unseen: Vec<usize> = list
            .writers
            .iter()
            .filter(|(element, _)| !seen.contains(element))
            .map(|(_, writer)| *writer)
            .filter(|writer| lists.operations[*writer].returned().is_some())
            .collect();
        unseen.sort_unstable();
        unseen.dedup();
        unseen
    }

    /// A chain of moments: a transaction leads to the moment of its return, and the last moment before
    /// its call leads to it.
    fn add_real_time(&mut self, lists: &Lists<'_>) {
        let mut returns: Vec<Time> =
            lists.operations.iter().filter_map(|one| Some(one.returned()?.0)).collect();
        returns.sort_unstable();
        returns.dedup();
        let first = self.edges.len();
        for place in 0..returns.len() {
            let moment = self.fresh();
            if place > 0 {
                self.add(moment - 1, moment, Dependency::RealTime);
            }
        }
        for (place, operation) in lists.operations.iter().enumerate() {
            if let Some((time, _)) = operation.returned() {
                let moment = first + returns.partition_point(|one| *one < time);
                self.add(place, moment, Dependency::RealTime);
            }
            let before = returns.partition_point(|one| *one < operation.called);
            if before > 0 {
                self.add(first + before - 1, place, Dependency::RealTime);
            }
        }
    }

    /// A short cycle of each tangle, of the gravest kind that there is.
    pub(super) fn cycles(&self) -> Vec<(CycleKind, Cycle)> {
        use Dependency::{ReadWrite, RealTime, WriteRead, WriteWrite};
        let levels: [&[Dependency]; 6] = [
            &[WriteWrite],
            &[WriteWrite, WriteRead],
            &[WriteWrite, WriteRead, ReadWrite],
            &[WriteWrite, RealTime],
            &[WriteWrite, WriteRead, RealTime],
            &[WriteWrite, WriteRead, ReadWrite, RealTime],
        ];
        for allowed in levels {
            let cycles: Vec<_> = self
                .tangles(allowed)
                .into_iter()
                .filter_map(|tangle| self.shortest_cycle(&tangle, allowed))
                .map(|cycle| (kind_of(&cycle), cycle))
                .collect();
            if !cycles.is_empty() {
                return cycles;
            }
        }
        Vec::new()
    }

    fn neighbours<'a>(
        &'a self,
        node: usize,
        allowed: &'a [Dependency],
    ) -> impl Iterator<Item = (usize, Dependency)> + 'a {
        self.edges[node].iter().copied().filter(|(_, why)| allowed.contains(why))
    }

    /// Strongly connected components of more than one node (R. Tarjan, "Depth-First Search and Linear
    /// Graph Algorithms", SIAM J. Comput. 1(2), 1972; with a stack of its own instead of recursion).
    fn tangles(&self, allowed: &[Dependency]) -> Vec<Vec<usize>> {
        const UNSEEN: usize = usize::MAX;
        let count = self.edges.len();
        let (mut index, mut low) = (vec![UNSEEN; count], vec![0; count]);
        let mut is_open = vec![false; count];
        let (mut open, mut path) = (Vec::new(), Vec::new());
        let mut tangles = Vec::new();
        let mut next_index = 0;
        for start in 0..count {
            if index[start] != UNSEEN {
                continue;
            }
            path.push((start, 0));
            while let Some((node, edge)) = path.pop() {
                if edge == 0 {
                    (index[node], low[node]) = (next_index, next_index);
                    next_index += 1;
                    open.push(node);
                    is_open[node] = true;
                } else {
                    // Back from the neighbour that was descended into.
                    let (child, _) = self.edges[node][edge - 1];
                    if is_open[child] && allowed.contains(&self.edges[node][edge - 1].1) {
                        low[node] = low[node].min(low[child]);
                    }
                }
                let mut edge = edge;
                let mut descended = false;
                while let Some(&(child, why)) = self.edges[node].get(edge) {
                    edge += 1;
                    if !allowed.contains(&why) {
                        continue;
                    }
                    if index[child] == UNSEEN {
                        path.push((node, edge));
                        path.push((child, 0));
                        descended = true;
                        break;
                    }
                    if is_open[child] {
                        low[node] = low[node].min(index[child]);
                    }
                }
                if descended || low[node] != index[node] {
                    continue;
                }
                let place = open.iter().rposition(|one| *one == node).unwrap_or(0);
                let tangle = open.split_off(place);
                tangle.iter().for_each(|one| is_open[*one] = false);
                if tangle.len() > 1 {
                    tangles.push(tangle);
                }
            }
        }
        tangles
    }

    fn shortest_cycle(&self, tangle: &[usize], allowed: &[Dependency]) -> Option<Cycle> {
        let inside: FxHashSet<usize> = tangle.iter().copied().collect();
        let mut starts: Vec<usize> =
            tangle.iter().copied().filter(|node| *node < self.transactions).collect();
        starts.sort_unstable();
        starts
            .into_iter()
            .take(STARTS_PER_TANGLE)
            .filter_map(|start| self.cycle_from(start, &inside, allowed))
            .min_by_key(Vec::len)
    }

    /// The shortest way from `start` back to it, without the nodes that only pass on.
    fn cycle_from(
        &self,
        start: usize,
        inside: &FxHashSet<usize>,
        allowed: &[Dependency],
    ) -> Option<Cycle> {
        let mut came_from = FxHashMap::default();
        let mut queue = VecDeque::from([start]);
        while let Some(node) = queue.pop_front() {
            for (next, why) in self.neighbours(node, allowed) {
                if !inside.contains(&next) || came_from.contains_key(&next) {
                    continue;
                }
                came_from.insert(next, (node, why));
                if next == start {
                    return Some(self.walk_back(start, &came_from));
                }
                queue.push_back(next);
            }
        }
        None
    }

    fn walk_back(&self, start: usize, came_from: &FxHashMap<usize, (usize, Dependency)>) -> Cycle {
        let mut cycle = Vec::new();
        let mut node = start;
        while let Some(&(before, why)) = came_from.get(&node) {
            if before < self.transactions {
                cycle.push((before, why));
            }
            node = before;
            if node == start {
                break;
            }
        }
        cycle.reverse();
        cycle
    }
}

fn kind_of(cycle: &Cycle) -> CycleKind {
    let count = |kind| cycle.iter().filter(|(_, why)| *why == kind).count();
    let real_time = count(Dependency::RealTime) > 0;
    match (count(Dependency::ReadWrite), count(Dependency::WriteRead)) {
        (0, 0) => CycleKind::DirtyWrite { real_time },
        (0, _) => CycleKind::CircularFlow { real_time },
        (1, _) => CycleKind::SingleMiss { real_time },
        _ => CycleKind::SeveralMisses { real_time },
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dependency::WriteWrite => "ww",
            Dependency::WriteRead => "wr",
            Dependency::ReadWrite => "rw",
            Dependency::RealTime => "rt",
        })
    }
}

impl fmt::Display for CycleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, real_time) = match self {
            CycleKind::DirtyWrite { real_time } => ("G0", real_time),
            CycleKind::CircularFlow { real_time } => ("G1c", real_time),
            CycleKind::SingleMiss { real_time } => ("G-single", real_time),
            CycleKind::SeveralMisses { real_time } => ("G2", real_time),
        };
        f.write_str(name)?;
        f.write_str(if *real_time { " in real time" } else { "" })
    }
}
