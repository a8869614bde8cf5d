//! Improves the spread of standbys that were kept from the previous plan.
//!
//! The spread is measured by the sum of squares of two kinds of counts: how
//! often an owner has a member as its standby, and how often a member is a
//! standby in all, less what is due to it. Each replacement decreases the sum.
//! This ends, and its result does not change when it is repeated.

use std::collections::BTreeSet;

use super::{Rank, Tally};

/// Number of partitions by which the spread may be off before standbys are
/// replaced for it. 2: random joins and leaves seldom exceed it, so most plans
/// keep every standby that is still a member.
const TOLERANCE: usize = 2;

/// Weight of the counts by owner relative to the total counts. 4: a dead
/// owner's partitions must fall to many, even if some members are standbys a
/// little more often than others.
const BY_OWNER: i64 = 4;

/// Places of one rank, and what is counted about them.
pub(super) struct Spread<'a> {
    rank: &'a Rank<'a>,
    /// Member at each place.
    places: &'a mut [u16],
    /// Partitions in which each member has the place.
    standing: Vec<Vec<usize>>,
    /// Members by the number of places that they have too many.
    by_excess: BTreeSet<(i64, u16)>,
}

/// The replacement of the standby of a partition.
struct Replacement {
    /// Half of the decrease of the sum of squares.
    gain: i64,
    partition: usize,
    to: u16,
}

impl<'a> Spread<'a> {
    pub(super) fn new(rank: &'a Rank<'a>, places: &'a mut [u16]) -> Self {
        let mut standing = vec![Vec::new(); rank.members()];
        for (p, &place) in places.iter().enumerate() {
            if let Some(partitions) = standing.get_mut(usize::from(place)) {
                partitions.push(p);
            }
        }
        let excess = |(m, own): (usize, &Vec<usize>)| (rank.excess(m, own.len()), m as u16);
        let by_excess = standing.iter().enumerate().map(excess).collect();
        Self { rank, places, standing, by_excess }
    }

    /// Replaces standbys until the spread is within the tolerance, or cannot
    /// be improved.
    pub(super) fn settle(&mut self) {
        while self.settle_owners() | self.settle_totals() {}
    }

    /// Number of places that `member` has too many.
    fn excess(&self, member: u16) -> i64 {
        let member = usize::from(member);
        self.rank.excess(member, self.standing[member].len())
    }

    /// The gain of giving a place of `from` to `to`, given how often the owner
    /// of the partition has each of them.
    fn gain(&self, from: (u16, usize), to: (u16, usize)) -> i64 {
        let by_owner = from.1 as i64 - to.1 as i64 - 1;
        let total = self.excess(from.0) - self.excess(to.0) - 1;
        BY_OWNER * by_owner + total
    }

    /// Carries out a replacement.
    fn replace(&mut self, Replacement { partition, to, .. }: Replacement) {
        let from = self.places[partition];
        for member in [from, to] {
            self.by_excess.remove(&(self.excess(member), member));
        }
        self.standing[usize::from(from)].retain(|p| *p != partition);
        self.standing[usize::from(to)].push(partition);
        self.places[partition] = to;
        for member in [from, to] {
            self.by_excess.insert((self.excess(member), member));
        }
    }

    /// Spreads the partitions of each owner. Returns whether it replaced any.
    fn settle_owners(&mut self) -> bool {
        let mut replaced = false;
        let mut tally = Tally::new(self.rank.members());
        for owner in 0..self.rank.members() {
            let mut tolerance = TOLERANCE;
            loop {
                tally.recount(self.rank.owned[owner].iter().map(|&p| self.places[p]));
                let most = tally.lowest() + tolerance;
                if tally.highest() <= most {
                    break;
                }
                let Some(best) = self.best_of_owner(owner, most, &tally) else { break };
                self.replace(best);
                (replaced, tolerance) = (true, 1);
            }
        }
        replaced
    }

    /// The best replacement of a standby that `owner` has in more than `most`
    /// partitions.
    fn best_of_owner(&self, owner: usize, most: usize, tally: &Tally) -> Option<Replacement> {
        let mut best: Option<Replacement> = None;
        let owned = &self.rank.owned[owner];
        for &from in tally.counted.iter().filter(|&&m| tally.of(m) > most) {
            for to in (0..self.rank.members() as u16).filter(|&to| to != from) {
                let gain = self.gain((from, tally.of(from)), (to, tally.of(to)));
                if gain > best.as_ref().map_or(0, |best| best.gain) {
                    let fits = |p: &&usize| self.places[**p] == from && !self.rank.barred(**p, to);
                    let partition = owned.iter().find(fits).copied();
                    best = partition.map(|partition| Replacement { gain, partition, to }).or(best);
                }
            }
        }
        best
    }

    /// Gives members that have too few places some of those that have more, and
    /// the other way round. Returns whether it replaced any.
    fn settle_totals(&mut self) -> bool {
        let mut replaced = false;
        let mut tallies = [Tally::new(self.rank.members()), Tally::new(self.rank.members())];
        for member in 0..self.rank.members() as u16 {
            let mut tolerance = TOLERANCE as i64;
            while self.excess(member) < -tolerance {
                let mut most = self.by_excess.iter().rev().map(|(_, from)| *from);
                let best = most.find_map(|from| self.best_between(from, member, &mut tallies));
                let Some(best) = best else { break };
                self.replace(best);
                (replaced, tolerance) = (true, 0);
            }
            // The excess is counted from what is due rounded down.
            let mut tolerance = TOLERANCE as i64 + 1;
            while self.excess(member) > tolerance {
                let mut least = self.by_excess.iter().map(|(_, to)| *to);
                let best = least.find_map(|to| self.best_between(member, to, &mut tallies));
                let Some(best) = best else { break };
                self.replace(best);
                (replaced, tolerance) = (true, 1);
            }
        }
        replaced
    }

    /// The best replacement of `from` by `to`.
    fn best_between(&self, from: u16, to: u16, tallies: &mut [Tally; 2]) -> Option<Replacement> {
        let standing = [from, to].map(|member| &self.standing[usize::from(member)]);
        for (tally, partitions) in tallies.iter_mut().zip(standing) {
            tally.recount(partitions.iter().map(|&p| self.rank.owner[p]));
        }
        let [before, after] = tallies;
        let mut best: Option<Replacement> = None;
        for &owner in before.counted.iter().filter(|_| from != to) {
            let gain = self.gain((from, before.of(owner)), (to, after.of(owner)));
            if gain > best.as_ref().map_or(0, |best| best.gain) {
                let fits = |p: &&usize| self.rank.owner[**p] == owner && !self.rank.barred(**p, to);
                let partition = standing[0].iter().find(fits).copied();
                best = partition.map(|partition| Replacement { gain, partition, to }).or(best);
            }
        }
        best
    }
}
