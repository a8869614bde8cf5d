//! Standbys: those of the previous plan, as long as they are spread well
//! enough, so that the partitions of a dead owner fall to many members.

mod spread;

use std::collections::BTreeSet;

use self::spread::Spread;
use super::board::{Board, NOBODY};

/// Gives every partition its standbys: one for each rank, if there are enough
/// members.
pub(super) fn arrange(board: &mut Board) {
    close_ranks(board);
    let owned = board.owned();
    for rank in 0..board.standbys.len().min(board.members().saturating_sub(1)) {
        let (ahead, from_here) = board.standbys.split_at_mut(rank);
        let (places, behind) = from_here.split_at_mut(1);
        let before = places[0].clone();
        let rank = Rank { owner: &board.owner, ahead, owned: &owned };
        rank.fill(&mut places[0]);
        Spread::new(&rank, &mut places[0]).settle();
        // A standby that moved up to this rank leaves its place to the one that
        // it replaced.
        for behind in behind {
            for (p, place) in behind.iter_mut().enumerate().filter(|(p, s)| **s == places[0][*p]) {
                *place = before[p];
            }
        }
    }
}

/// Removes owners from the standbys, and closes the gaps.
fn close_ranks(board: &mut Board) {
    for p in 0..board.owner.len() {
        let owner = board.owner[p];
        let mut left = board.standbys_of(p).filter(|&s| s != owner).collect::<Vec<_>>().into_iter();
        board.standbys.iter_mut().for_each(|rank| rank[p] = left.next().unwrap_or(NOBODY));
    }
}

/// Places of one rank, one for each partition.
struct Rank<'a> {
    owner: &'a [u16],
    /// Standbys of lower ranks.
    ahead: &'a [Vec<u16>],
    /// Partitions of each member.
    owned: &'a [Vec<usize>],
}

impl Rank<'_> {
    fn members(&self) -> usize {
        self.owned.len()
    }

    /// Tells whether `member` already has another place in the line of `p`.
    fn barred(&self, p: usize, member: u16) -> bool {
        self.owner[p] == member || self.ahead.iter().any(|rank| rank[p] == member)
    }

    /// Number of places that `member` should have, rounded down. The partitions
    /// of each owner are spread over all others, so it is an equal part of all
    /// partitions that the member does not own.
    fn due(&self, member: usize) -> usize {
        (self.owner.len() - self.owned[member].len()) / (self.members() - 1)
    }

    /// Number of places that `member` has too many, if it has `total`.
    fn excess(&self, member: usize, total: usize) -> i64 {
        total as i64 - self.due(member) as i64
    }

    /// Number of places that each member has.
    fn totals(&self, places: &[u16]) -> Vec<usize> {
        let mut totals = Tally::new(self.members());
        totals.recount(places.iter().copied());
        totals.counts
    }

    /// Fills the vacant places: with the member that the owner of the partition
    /// has least often, and of those the one that has the fewest places.
    fn fill(&self, places: &mut [u16]) {
        if !places.contains(&NOBODY) {
            return;
        }
        let mut totals = self.totals(places);
        let entry = |m: usize, total: usize| (self.excess(m, total), m as u16);
        let mut fewest: BTreeSet<_> = (0..self.members()).map(|m| entry(m, totals[m])).collect();
        let mut tally = Tally::new(self.members());
        for owned in self.owned {
            let vacant: Vec<_> = owned.iter().copied().filter(|&p| places[p] == NOBODY).collect();
            if vacant.is_empty() {
                continue;
            }
            tally.recount(owned.iter().map(|&p| places[p]));
            for p in vacant {
                let Some(member) = self.pick(p, &fewest, &tally) else { continue };
                places[p] = member;
                tally.add(member);
                let member = usize::from(member);
                fewest.remove(&entry(member, totals[member]));
                totals[member] += 1;
                fewest.insert(entry(member, totals[member]));
            }
        }
    }

    /// The member for a vacant place of `p`, from the members in the order of
    /// their excess.
    fn pick(&self, p: usize, fewest: &BTreeSet<(i64, u16)>, tally: &Tally) -> Option<u16> {
        let lowest = tally.lowest();
        let mut best: Option<u16> = None;
        for &(_, member) in fewest {
            if self.barred(p, member) || best.is_some_and(|b| tally.of(b) <= tally.of(member)) {
                continue;
            }
            best = Some(member);
            if tally.of(member) == lowest {
                break;
            }
        }
        best
    }
}

/// Counts by member that are cleared in the time that it took to count.
struct Tally {
    counts: Vec<usize>,
    counted: Vec<u16>,
}

impl Tally {
    fn new(members: usize) -> Self {
        Self { counts: vec![0; members], counted: Vec::new() }
    }

    fn add(&mut self, member: u16) {
        if let Some(count) = self.counts.get_mut(usize::from(member)) {
            if *count == 0 {
                self.counted.push(member);
            }
            *count += 1;
        }
    }

    fn of(&self, member: u16) -> usize {
        self.counts[usize::from(member)]
    }

    /// The lowest count of all members but one that has none.
    fn lowest(&self) -> usize {
        let all = self.counted.len() + 1 >= self.counts.len();
        if all { self.counted.iter().map(|&m| self.of(m)).min().unwrap_or(0) } else { 0 }
    }

    fn highest(&self) -> usize {
        self.counted.iter().map(|&m| self.of(m)).max().unwrap_or(0)
    }

    /// Counts `members` instead of what was counted before.
    fn recount(&mut self, members: impl Iterator<Item = u16>) {
        self.counted.drain(..).for_each(|m| self.counts[usize::from(m)] = 0);
        members.for_each(|member| self.add(member));
    }
}
