//! Owners for partitions that have none, and for members that have too few,
//! with the least number of moves.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use xxhash_rust::xxh3::xxh3_64;

use super::super::ownership::WorkerId;
use super::board::{Board, NOBODY, mixed};
use super::levelling::START;
use super::load::Load;
use super::shares::Shares;

/// Gives each member its quota. Moves the partitions without an owner, and
/// those that an owner has beyond its quota.
///
/// A standby gets the partition if it has room, since it is in line already,
/// the first before the second. The others go to the member with most room.
pub(super) fn by_count(board: &mut Board, shares: &Shares, members: &[WorkerId]) {
    let names: Vec<u64> = members.iter().map(|m| xxh3_64(m.as_str().as_bytes())).collect();
    let counts = board.counts();
    let mut claims = counts.clone();
    for p in board.orphans() {
        if let Some(claims) = claims.get_mut(usize::from(board.standbys[0][p])) {
            *claims += 1;
        }
    }
    let quotas = shares.quotas(&counts, &claims);
    for (member, owned) in board.owned().into_iter().enumerate() {
        let surplus = counts[member].saturating_sub(quotas[member]);
        release(board, owned, surplus, |p| mixed(names[member] ^ p as u64));
    }
    let counts = board.counts();
    let mut room: Vec<usize> = quotas.iter().zip(counts).map(|(q, c)| q - c).collect();
    for rank in 0..board.standbys.len() {
        for p in board.orphans() {
            let standby = board.standbys[rank][p];
            if let Some(room @ 1..) = room.get_mut(usize::from(standby)) {
                *room -= 1;
                board.owner[p] = standby;
            }
        }
    }
    // Members with equal room come in another order at each room, so that the
    // first name is not always the first.
    let entry = |m: usize, room: usize| (room, mixed(names[m] ^ room as u64), m);
    let mut most: BinaryHeap<_> = (0..room.len()).map(|m| entry(m, room[m])).collect();
    for p in board.orphans() {
        // The rooms add up to the number of orphans, so there is always one left.
        let Some((room @ 1.., _, member)) = most.pop() else { return };
        board.owner[p] = member as u16;
        most.push(entry(member, room - 1));
    }
}

/// Takes `count` of the partitions `owned` from their owner, those with the
/// lowest `key` first.
fn release<K: Ord>(
    board: &mut Board,
    mut owned: Vec<usize>,
    count: usize,
    key: impl Fn(usize) -> K,
) {
    if count > 0 {
        owned.sort_unstable_by_key(|&p| (key(p), p));
        owned.into_iter().take(count).for_each(|p| board.owner[p] = NOBODY);
    }
}

/// Gives partitions without an owner to the members with the least load, and
/// newcomers their share rounded down. Other members keep what they own, up to
/// the limit for loads.
pub(super) fn by_load(board: &mut Board, shares: &Shares, load: &Load) {
    let counts = board.counts();
    for (member, owned) in board.owned().into_iter().enumerate() {
        let surplus = counts[member].saturating_sub(shares.limit(member));
        release(board, owned, surplus, |p| load.of[p]);
    }
    let mut orphans = board.orphans();
    orphans.sort_unstable_by_key(|&p| (Reverse(load.of[p]), p));
    let mut placing = Placing::new(board, shares, load);
    for (done, &p) in orphans.iter().enumerate() {
        placing.place(p, orphans.len() - done);
    }
    placing.fill_newcomers();
}

struct Placing<'a> {
    board: &'a mut Board,
    shares: &'a Shares,
    load: &'a Load,
    counts: Vec<usize>,
    loads: Vec<u64>,
    /// Share of each member, rounded down.
    floors: Vec<usize>,
    /// Partitions that a newcomer still lacks; 0 for other members.
    missing: Vec<usize>,
}

impl<'a> Placing<'a> {
    fn new(board: &'a mut Board, shares: &'a Shares, load: &'a Load) -> Self {
        let (counts, loads) = (board.counts(), load.by_owner(&board.owner));
        let floors: Vec<_> = (0..board.members()).map(|m| shares.floor(m)).collect();
        let came_from = board.came_from.iter().zip(&floors);
        let missing = came_from.map(|(from, floor)| if from.is_some() { 0 } else { *floor });
        let missing = missing.collect();
        Self { board, shares, load, counts, loads, floors, missing }
    }

    /// The load of `member`, had it `more` units, as a multiple of the mean.
    fn level(&self, member: usize, more: u64) -> f64 {
        self.load.relative(member, self.loads[member] + more)
    }

    /// The member of `candidates` with the least load, `more` included.
    fn calmest(&self, more: u64, candidates: impl Iterator<Item = usize>) -> Option<usize> {
        candidates.min_by(|&a, &b| self.level(a, more).total_cmp(&self.level(b, more)))
    }

    /// Finds an owner for `p`, one of `left` partitions that have none.
    fn place(&mut self, p: usize, left: usize) {
        let members = 0..self.counts.len();
        // What newcomers lack must not be taken from members that stayed while
        // there are partitions without an owner: that would be a move more.
        let reserved = left <= self.missing.iter().sum();
        let allowed = |m: usize| {
            if reserved { self.missing[m] > 0 } else { self.counts[m] < self.shares.limit(m) }
        };
        let units = self.load.of[p];
        let calm = |m: &usize| allowed(*m) && self.level(*m, units) <= START;
        let standby = self.board.standbys_of(p).map(usize::from).find(calm);
        let chosen = standby.or_else(|| self.calmest(units, members.filter(|&m| allowed(m))));
        // The limits add up to more than all partitions, so there is always one.
        if let Some(member) = chosen {
            self.give(p, member);
        }
    }

    fn give(&mut self, p: usize, member: usize) {
        self.board.owner[p] = member as u16;
        self.counts[member] += 1;
        self.loads[member] += self.load.of[p];
        self.missing[member] = self.missing[member].saturating_sub(1);
    }

    /// Moves partitions to the newcomers that lack some, from the members with
    /// the most load of those that own more than their share rounded down.
    fn fill_newcomers(&mut self) {
        if self.missing.iter().all(|missing| *missing == 0) {
            return;
        }
        let mut owned = self.board.owned();
        for newcomer in 0..self.counts.len() {
            while self.missing[newcomer] > 0 {
                let donors = 0..self.counts.len();
                let donors = donors.filter(|&m| self.counts[m] > self.floors[m]);
                let donor = donors.max_by(|&a, &b| self.level(a, 0).total_cmp(&self.level(b, 0)));
                let Some(donor) = donor else { return };
                let open = (self.load.share(newcomer) - self.loads[newcomer] as f64).max(0.0);
                let wanted = (open / self.missing[newcomer] as f64) as u64;
                let fit = |at: &usize| self.load.of[owned[donor][*at]].abs_diff(wanted);
                let Some(at) = (0..owned[donor].len()).min_by_key(fit) else { return };
                let p = owned[donor].swap_remove(at);
                self.counts[donor] -= 1;
                self.loads[donor] -= self.load.of[p];
                self.give(p, newcomer);
            }
        }
    }
}
