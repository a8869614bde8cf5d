//! The plan of a fleet: the worker that should own each partition, and the
//! workers that should stand by for it.
//!
//! A plan is advice. RabbitMQ alone decides which consumer is active, so a
//! plan that is wrong, late or missing costs balance and never safety.
//!
//! [`Plan::next`] computes a plan from the previous one, in four steps:
//!
//! 1. The weights of the members become a *quota* of partitions each (`shares`).
//! 2. When the fleet changed, partitions without an owner are given away, and
//!    members with too many give some up (`placement`).
//! 3. When the measured load of the members differs too much, a few partitions
//!    move or are swapped (`levelling`).
//! 4. Standbys that left or were promoted are replaced, and spread over the
//!    fleet (`standbys`).
//!
//! # When the quotas are enforced
//! Only after a change: a member joined or left, the weights of the members
//! that stayed are in a different proportion, or the number of partitions is
//! another one. In between, an owner may have more or less than its quota
//! because of the load, and this is left alone even while no load is measured.
//!
//! After a change *without* measured loads, or of the weights or the number of
//! partitions, each member gets its quota exactly. After a join or leave *with*
//! measured loads, members that stayed keep what they have: a member that owns
//! one hot partition only is not filled up again. Then a newcomer gets at least
//! its share rounded down, nobody has more than the limit for loads, and
//! partitions move from the members with the most load to those with the least.
//! A planner that has just been elected should therefore collect one round of
//! reports before it plans.

mod board;
mod levelling;
mod load;
mod placement;
mod shares;
mod standbys;

use serde::{Deserialize, Serialize};

use self::board::{Board, NOBODY};
use self::levelling::Levelling;
use self::load::Load;
use self::shares::Shares;
use super::ownership::{Weight, WorkerId};
use super::partition::PartitionId;

/// A worker that partitions can be planned for.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Name of the worker.
    pub worker: WorkerId,
    /// Share of the partitions, relative to the other members.
    pub weight: Weight,
}

/// Planned owner of a partition, and the workers that are next in its line.
///
/// Workers are indices into [`Plan::members`]. Serialises as an array, the
/// owner first: `[owner, standby, standby]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u16>", into = "Vec<u16>")]
pub struct Line {
    owner: u16,
    standbys: Vec<u16>,
}

impl Line {
    /// The owner's index, then those of the standbys.
    fn indices(&self) -> impl Iterator<Item = u16> {
        std::iter::once(self.owner).chain(self.standbys.iter().copied())
    }
}

impl TryFrom<Vec<u16>> for Line {
    type Error = PlanError;
    fn try_from(mut indices: Vec<u16>) -> Result<Self, PlanError> {
        if indices.is_empty() {
            return Err(PlanError::NoOwner);
        }
        let standbys = indices.split_off(1);
        Ok(Self { owner: indices[0], standbys })
    }
}

impl From<Line> for Vec<u16> {
    fn from(line: Line) -> Self {
        line.indices().collect()
    }
}

/// Position of a worker in the line of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The worker should be the active consumer.
    Owner,
    /// The worker should wait behind the owner, at this rank. The first standby
    /// has rank 1.
    Standby(usize),
    /// The worker should wait behind the standbys, because all members do
    /// ([`Plan::everyone`]).
    InLine,
    /// The worker should have no consumer.
    Absent,
}

/// A plan of a fleet. Deserialising one checks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Plan {
    /// Number of the plan, from 1. It rises by one with every plan that differs
    /// from its predecessor.
    pub number: u64,
    /// Workers of the fleet, sorted, without duplicates.
    pub members: Vec<WorkerId>,
    /// Tells that all members stand in every line, behind the standbys.
    pub everyone: bool,
    /// One line for each partition, by number. Empty when there are no members.
    pub lines: Vec<Line>,
    /// Weights of the members in millionths, by which the next plan sees that
    /// they changed. Empty when all are equal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weights: Vec<u32>,
    /// Tells that partitions still move because of their load: the next plan
    /// goes on below the limit at which it would not start.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    levelling: bool,
}

/// A plan as it was received.
#[derive(Deserialize)]
struct Unchecked {
    number: u64,
    members: Vec<WorkerId>,
    everyone: bool,
    lines: Vec<Line>,
    #[serde(default)]
    weights: Vec<u32>,
    #[serde(default)]
    levelling: bool,
}

impl TryFrom<Unchecked> for Plan {
    type Error = PlanError;

    fn try_from(plan: Unchecked) -> Result<Self, PlanError> {
        let Unchecked { number, members, everyone, lines, weights, levelling } = plan;
        if members.len() > Self::MAX_MEMBERS {
            return Err(PlanError::TooManyMembers { members: members.len() });
        }
        if !members.is_sorted_by(|a, b| a < b) {
            return Err(PlanError::UnsortedMembers);
        }
        if !(weights.is_empty() || weights.len() == members.len()) || weights.contains(&0) {
            return Err(PlanError::Weights);
        }
        for (partition, line) in (0..).map(PartitionId::new).zip(&lines) {
            let mut indices: Vec<_> = line.indices().collect();
            if let Some(&index) = indices.iter().find(|&&i| usize::from(i) >= members.len()) {
                return Err(PlanError::NoSuchMember { partition, index });
            }
            indices.sort_unstable();
            if !indices.is_sorted_by(|a, b| a < b) {
                return Err(PlanError::TwiceInLine { partition });
            }
        }
        Ok(Self { number, members, everyone, lines, weights, levelling })
    }
}

/// A plan that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The members do not fit the indices of the lines.
    #[error("a plan has up to {max} members, not {members}", max = Plan::MAX_MEMBERS)]
    TooManyMembers {
        /// Number of members.
        members: usize,
    },
    /// The members are not sorted by name, or one is listed twice.
    #[error("the members of a plan must be sorted and unique")]
    UnsortedMembers,
    /// The weights are not one positive number for each member.
    #[error("a plan has a weight above 0 for each member, or none at all")]
    Weights,
    /// A line is empty.
    #[error("a line of a plan must name an owner")]
    NoOwner,
    /// A line names a member that does not exist.
    #[error("the line of partition {partition} names member {index}, which does not exist")]
    NoSuchMember {
        /// Partition of the line.
        partition: PartitionId,
        /// The index.
        index: u16,
    },
    /// A line names a member twice.
    #[error("the line of partition {partition} names a member twice")]
    TwiceInLine {
        /// Partition of the line.
        partition: PartitionId,
    },
}

impl Plan {
    /// Standbys of a partition, if the fleet has that many more members. Two:
    /// while the first takes over from a dead owner, the second is still there
    /// for a further fault.
    pub const STANDBYS: usize = 2;

    /// Consumers up to which all members stand in every line. 10,000: 40 workers
    /// on 250 partitions. A larger fleet has three consumers for each partition
    /// instead.
    pub const EVERYONE_UP_TO: usize = 10_000;

    /// Members of a plan, at most. 65,535: their indices have 16 bits.
    pub const MAX_MEMBERS: usize = NOBODY as usize;

    /// The position of `worker` in the line of `partition`.
    #[must_use]
    pub fn role(&self, worker: &WorkerId, partition: PartitionId) -> Role {
        let (Some(line), Ok(index)) = (self.at(partition), self.members.binary_search(worker))
        else {
            return Role::Absent;
        };
        match line.indices().position(|i| usize::from(i) == index) {
            Some(0) => Role::Owner,
            Some(rank) => Role::Standby(rank),
            None if self.everyone => Role::InLine,
            None => Role::Absent,
        }
    }

    /// The planned owner of `partition`; none when there are no members or no
    /// such partition.
    #[must_use]
    pub fn owner(&self, partition: PartitionId) -> Option<&WorkerId> {
        self.line(partition).next()
    }

    /// The owner of `partition`, then its standbys. Other members are not part
    /// of it, even if [`Plan::everyone`] stands in line.
    pub fn line(&self, partition: PartitionId) -> impl Iterator<Item = &WorkerId> {
        let indices = self.at(partition).into_iter().flat_map(Line::indices);
        indices.filter_map(|i| self.members.get(usize::from(i)))
    }

    fn at(&self, partition: PartitionId) -> Option<&Line> {
        self.lines.get(usize::try_from(partition.number()).ok()?)
    }

    /// Computes the plan that follows `previous`, for the partitions 0 to
    /// `partitions` − 1.
    ///
    /// The order of `members` does not matter. Of a worker that is listed twice
    /// the smaller weight counts, and beyond [`Plan::MAX_MEMBERS`] the last
    /// names are left out. `loads[p]` is the measured load of partition `p` in
    /// any unit, for example seconds of handler time per second; a missing,
    /// negative or infinite one counts as 0. Loads are unknown when all are 0.
    ///
    /// The same arguments give the same plan, on every machine. When nothing
    /// has to change, it is `previous` with its number.
    #[must_use]
    pub fn next(
        previous: Option<&Self>,
        members: &[Member],
        partitions: usize,
        loads: &[f64],
    ) -> Self {
        let (members, weights) = shares::sorted(members);
        let load = Load::measured(loads, partitions, &weights);
        let mut board = Board::new(previous, &members, partitions);
        let shares = Shares::new(weights, partitions);
        let change = Change::since(previous, &board, &members, &shares);
        let mut levelling = previous.is_some_and(|previous| previous.levelling);
        if !members.is_empty() {
            match (change, &load) {
                (Change::None, _) => {}
                (Change::Members, Some(load)) => placement::by_load(&mut board, &shares, load),
                _ => placement::by_count(&mut board, &shares, &members),
            }
            if let Some(load) = &load {
                levelling = Levelling::new(&mut board, &shares, load).run(levelling);
            }
            standbys::arrange(&mut board);
        }
        let everyone = members.len().saturating_mul(partitions) <= Self::EVERYONE_UP_TO;
        let (lines, weights) = (board.lines(), shares.stored());
        let mut plan = Self { number: 1, members, everyone, lines, weights, levelling };
        if let Some(previous) = previous {
            plan.number = previous.number;
            if plan != *previous {
                plan.number = previous.number.saturating_add(1);
            }
        }
        plan
    }
}

/// Difference between the fleet of a plan and that of the previous one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// The same fleet.
    None,
    /// Members joined or left; the others have their weights.
    Members,
    /// Everything else, the first plan included.
    Other,
}

impl Change {
    fn since(previous: Option<&Plan>, board: &Board, members: &[WorkerId], now: &Shares) -> Self {
        let Some(previous) = previous else { return Self::Other };
        let same_weights = now.keep_proportion(&board.came_from, &previous.weights);
        if previous.lines.len() != board.owner.len() || !same_weights {
            Self::Other
        } else if previous.members != members || board.owner.contains(&NOBODY) {
            Self::Members
        } else {
            Self::None
        }
    }
}

#[cfg(test)]
mod tests;
