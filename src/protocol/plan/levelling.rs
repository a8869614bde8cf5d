//! Moves of a few partitions from members with much measured load to members
//! with little.
//!
//! A *level* is the load of a member as a multiple of the mean, weights
//! included. Each step moves one partition, or swaps two, so that the higher
//! level of the two members falls most.
//!
//! Loads are noisy, and each move costs a hand-over. So there is hysteresis
//! twice: levelling starts above [`START`] and then goes on down to [`TARGET`],
//! over several plans if need be; and a plan that starts must promise a larger
//! gain than one that goes on.

use super::board::Board;
use super::load::Load;
use super::shares::Shares;

/// Partitions that a plan moves because of their load, at most. 4: the load is
/// measured again after each plan, and what was wrong about it costs little.
const MOVES_PER_PLAN: usize = 4;

/// Level above which levelling starts: 1.20, which 5 % of noise in the loads
/// does not reach from the target.
pub(super) const START: f64 = 1.20;

/// Level down to which levelling goes on. 1.10: with some ten partitions a
/// member, less is rarely possible.
const TARGET: f64 = 1.10;

/// Least gain of a step, as a part of the mean. 0.02: less is not worth a
/// hand-over. A lighter partition moves only if its owner can gain as much by
/// several moves in a row, as the owner of one hot and many light ones can.
const STEP: f64 = 0.02;

/// Least gain that a plan must promise to start. 0.05: more than noise of 5 %
/// adds to a step that was just too small before.
const FIRST_STEPS: f64 = 0.05;

/// One move or swap.
#[derive(Clone, Copy)]
struct Step {
    from: usize,
    to: usize,
    partition: usize,
    /// The partition that goes back to `from`, in a swap.
    back: Option<usize>,
    /// Decrease of the higher level of the two members.
    gain: f64,
    /// Increase of the sum of the squared levels, times the weights.
    squares: f64,
    /// Gain that this step promises: its own, or that of a series of moves that
    /// it is the first of.
    promise: f64,
}

impl Step {
    fn moves(&self) -> usize {
        1 + usize::from(self.back.is_some())
    }

    /// Tells whether this step is better than `other`.
    fn beats(&self, other: &Self) -> bool {
        // A swap moves two partitions, so it has to be worth the second.
        let handicap = |step: &Self| step.gain - if step.back.is_some() { STEP } else { 0.0 };
        let order = handicap(self).total_cmp(&handicap(other));
        order.then_with(|| other.squares.total_cmp(&self.squares)).is_gt()
    }
}

/// The owners while partitions move because of their load.
pub(super) struct Levelling<'a> {
    board: &'a mut Board,
    load: &'a Load,
    /// The most partitions of each member.
    limits: Vec<usize>,
    /// Level of each member.
    levels: Vec<f64>,
    /// Load in units of each member.
    units: Vec<u64>,
    /// Partitions of each member, the lightest first.
    owned: Vec<Vec<usize>>,
}

impl<'a> Levelling<'a> {
    pub(super) fn new(board: &'a mut Board, shares: &Shares, load: &'a Load) -> Self {
        let members = board.members();
        let units = load.by_owner(&board.owner);
        Self {
            limits: (0..members).map(|m| shares.limit(m)).collect(),
            levels: (0..members).map(|m| load.relative(m, units[m])).collect(),
            units,
            owned: Vec::new(),
            board,
            load,
        }
    }

    /// Moves what this plan should move. Returns whether the next plan should
    /// go on; `going_on` is what the previous plan returned.
    pub(super) fn run(mut self, going_on: bool) -> bool {
        let bound = if going_on { TARGET } else { START };
        if self.levels.iter().all(|level| *level <= bound) {
            return false;
        }
        self.owned = self.board.owned();
        self.owned.iter_mut().for_each(|own| own.sort_unstable_by_key(|&p| (self.load.of[p], p)));
        let before = self.board.owner.clone();
        let (mut moves, mut promised) = (0, 0.0);
        loop {
            let started = going_on || promised >= FIRST_STEPS;
            match self.best(started) {
                Some(step) if moves + step.moves() <= MOVES_PER_PLAN => {
                    moves += step.moves();
                    promised += step.promise;
                    self.take(step);
                }
                further if started => return further.is_some(),
                _ => {
                    self.board.owner = before;
                    return false;
                }
            }
        }
    }

    /// The best step for the busiest member that has one. A plan that has not
    /// `started` needs a higher level, and a longer series of light moves.
    fn best(&self, started: bool) -> Option<Step> {
        let (bound, series) = if started { (TARGET, STEP) } else { (START, FIRST_STEPS) };
        let mut busy: Vec<_> = (0..self.levels.len()).filter(|&m| self.levels[m] > bound).collect();
        busy.sort_by(|&a, &b| self.levels[b].total_cmp(&self.levels[a]));
        busy.into_iter().find_map(|member| self.best_from(member, series))
    }

    /// The best step that takes load from `from`. A move may gain any amount if
    /// all moves that are left to `from` gain at least `series`.
    fn best_from(&self, from: usize, series: f64) -> Option<Step> {
        let mut best: Option<Step> = None;
        let mut offer = |step: Step| {
            if step.promise >= STEP && best.is_none_or(|best| step.beats(&best)) {
                best = Some(step);
            }
        };
        // Its hottest partition cannot be split.
        let hottest = self.owned[from].last().map_or(0, |&p| self.load.of[p]);
        let left = self.levels[from] - self.load.relative(from, hottest).max(TARGET);
        let receivers = 0..self.levels.len();
        for to in receivers.filter(|&m| self.levels[m] < self.levels[from]) {
            for &partition in &self.owned[from] {
                if self.owned[to].len() < self.limits[to] {
                    let mut step = self.step(from, to, partition, None);
                    let light = self.level(to, self.load.of[partition]) <= TARGET;
                    if light && step.gain > 0.0 && left >= series {
                        step.promise = left.max(step.gain);
                    }
                    offer(step);
                }
                for back in self.partners(from, to, partition) {
                    offer(self.step(from, to, partition, Some(back)));
                }
            }
        }
        best
    }

    /// The level of `member`, had it `more` units.
    fn level(&self, member: usize, more: u64) -> f64 {
        self.load.relative(member, self.units[member] + more)
    }

    /// The two partitions of `to` for which a swap against `partition` gains
    /// most: the difference of the loads that makes both levels equal lies
    /// between them.
    fn partners(&self, from: usize, to: usize, partition: usize) -> impl Iterator<Item = usize> {
        let gap = self.levels[from] - self.levels[to];
        let (a, b) = (self.load.relative(from, 1), self.load.relative(to, 1));
        let ideal = self.load.of[partition].saturating_sub((gap / (a + b)) as u64);
        let own = &self.owned[to];
        let at = own.partition_point(|&p| self.load.of[p] < ideal);
        own[at.saturating_sub(1)..own.len().min(at + 1)].iter().copied()
    }

    fn step(&self, from: usize, to: usize, partition: usize, back: Option<usize>) -> Step {
        let back_units = back.map_or(0, |p| self.load.of[p]);
        let moved = |member, units| self.load.relative(member, units);
        let lighter = self.units[from] - self.load.of[partition] + back_units;
        let heavier = self.units[to] + self.load.of[partition] - back_units;
        let (lighter, heavier) = (moved(from, lighter), moved(to, heavier));
        let grown = |m: usize, level: f64| {
            self.load.weight(m) * (level * level - self.levels[m] * self.levels[m])
        };
        let gain = self.levels[from] - lighter.max(heavier);
        let squares = grown(from, lighter) + grown(to, heavier);
        Step { from, to, partition, back, gain, squares, promise: gain }
    }

    /// Carries out `step`.
    fn take(&mut self, step: Step) {
        self.hand(step.partition, step.from, step.to);
        if let Some(back) = step.back {
            self.hand(back, step.to, step.from);
        }
    }

    fn hand(&mut self, partition: usize, from: usize, to: usize) {
        let load = self.load;
        let key = |p: usize| (load.of[p], p);
        if let Ok(at) = self.owned[from].binary_search_by_key(&key(partition), |&p| key(p)) {
            self.owned[from].remove(at);
        }
        let at = self.owned[to].partition_point(|&p| key(p) < key(partition));
        self.owned[to].insert(at, partition);
        self.board.owner[partition] = to as u16;
        self.units[from] -= load.of[partition];
        self.units[to] += load.of[partition];
        for member in [from, to] {
            self.levels[member] = load.relative(member, self.units[member]);
        }
    }
}
