//! Which fault comes next.

use std::time::Duration;

use clap::ValueEnum;
use clap::builder::{PossibleValue, TypedValueParser};
use serde::Serialize;

use crate::cli::work::parse_duration;
use crate::provision::cluster::NodeFault;

/// What befalls the workers, the routers or the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fault {
    /// A node is stopped as an operator does it
    Stop,
    /// A node is killed with SIGKILL
    Kill,
    /// A node is frozen: its connections stay open, and nothing answers
    Pause,
    /// A node is cut off from its peers and its clients; a single one silently
    Cut,
    /// A node is cut off from its peers; its clients still reach it
    Split,
    /// All nodes are stopped, and started again
    Restart,
    /// The leaders of all partitions move to other nodes
    Move,
    /// A node is killed, and the leaders of its consumers' queues move before the others
    /// have given it up: the known double loss, never by chance
    DoubleLoss,
    /// The broker closes all connections
    Close,
    /// The broker's application is stopped and started: its process stays
    StopApp,
    /// Memory runs low: the broker takes no messages
    Memory,
    /// Disk space runs low: the broker takes no messages
    Disk,
    /// A worker is frozen with SIGSTOP, for 5 to 40 s
    Freeze,
    /// A worker is killed with SIGKILL, and another one started
    KillWorker,
    /// A worker drains, and another one is started
    Drain,
    /// Every worker drains and is started again, one after another
    Rolling,
    /// A worker is frozen, another one started after 2 s, the first killed, and the rest
    /// restarted one after another
    FreezeReplace,
    /// The same, with 10 s between the freeze and the start
    FreezeReplaceLate,
    /// Workers, and routers if there are any, are frozen, killed, drained and started at random
    Churn,
    /// One router after another is frozen, each while the one before still is
    FreezeRouters,
    /// Tasks that kill their workers, which are started again after 0.3 s or 1 s
    Poison,
    /// One by chance: of all that a single broker may meet, or of those of one node
    Any,
}

/// Faults of a single broker that chance picks from.
const OF_ONE: [Fault; 16] = [
    Fault::Stop,
    Fault::Kill,
    Fault::Pause,
    Fault::Cut,
    Fault::Restart,
    Fault::Close,
    Fault::StopApp,
    Fault::Memory,
    Fault::Disk,
    Fault::Freeze,
    Fault::KillWorker,
    Fault::Drain,
    Fault::Rolling,
    Fault::FreezeReplace,
    Fault::Churn,
    Fault::Poison,
];

/// Faults of one node of a cluster.
const OF_NODES: [Fault; 5] = [Fault::Stop, Fault::Kill, Fault::Pause, Fault::Cut, Fault::Split];

/// What else befalls a cluster by chance.
const OF_CLUSTERS: [Fault; 7] = [
    Fault::Move,
    Fault::Close,
    Fault::Memory,
    Fault::KillWorker,
    Fault::FreezeReplace,
    Fault::Churn,
    Fault::Rolling,
];

impl Fault {
    /// What it does to a node for as long as it lasts, if it is such a fault.
    pub(super) fn of_node(self) -> Option<NodeFault> {
        match self {
            Self::Stop => Some(NodeFault::Stop),
            Self::Kill | Self::DoubleLoss => Some(NodeFault::Kill),
            Self::Pause => Some(NodeFault::Pause),
            Self::Cut => Some(NodeFault::Cut),
            Self::Split => Some(NodeFault::Split),
            _ => None,
        }
    }

    /// Its name as it is given.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A fault, and for how long if that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) fault: Fault,
    pub(super) time: Option<Duration>,
}

impl From<Fault> for Planned {
    fn from(fault: Fault) -> Self {
        Self { fault, time: None }
    }
}

/// Reads `FAULT` or `FAULT=TIME`.
#[derive(Debug, Clone)]
pub(super) struct PlannedParser;

impl TypedValueParser for PlannedParser {
    type Value = Planned;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Planned, clap::Error> {
        let text = value.to_string_lossy();
        let (name, time) = match text.split_once('=') {
            Some((name, time)) => (name, Some(time)),
            None => (&*text, None),
        };
        let names = clap::builder::EnumValueParser::<Fault>::new();
        let fault = names.parse_ref(command, argument, std::ffi::OsStr::new(name))?;
        let time = time.map(parse_duration).transpose().map_err(|error| {
            let text = format!("`{text}`: {error}\n");
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, text)
        })?;
        Ok(Planned { fault, time })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let values = Fault::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        Some(Box::new(values))
    }
}

/// Numbers that depend on the seed only: SplitMix64 (Steele et al., 2014).
#[derive(Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `limit`, which is small: the bias of the remainder does not show.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }

    /// One of several.
    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// From `least` to `most`, in steps of 100 ms.
    pub(super) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let steps = most.saturating_sub(least).as_millis() / 100;
        least + Duration::from_millis(100) * self.below(steps as usize + 1) as u32
    }
}

/// The faults in their order: those that were asked for, or random ones for ever.
#[derive(Debug)]
pub(super) enum Schedule {
    Given(std::vec::IntoIter<Planned>),
    Random,
}

impl Schedule {
    /// The next one; never [`Fault::Any`].
    pub(super) fn next(&mut self, chance: &mut Chance, nodes: u8) -> Option<Planned> {
        let planned = match self {
            Self::Given(faults) => faults.next()?,
            // A full restart is rare, and comes at the end anyway.
            Self::Random if chance.below(10) == 0 => Fault::Restart.into(),
            Self::Random if nodes > 1 && chance.below(2) == 0 => chance.pick(&OF_CLUSTERS).into(),
            Self::Random => Fault::Any.into(),
        };
        Some(match planned {
            Planned { fault: Fault::Any, time } if nodes > 1 => {
                Planned { fault: chance.pick(&OF_NODES), time }
            }
            Planned { fault: Fault::Any, time } => Planned { fault: chance.pick(&OF_ONE), time },
            planned => planned,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_faults() {
        let draw = |seed, nodes| -> Vec<Fault> {
            let mut chance = Chance::new(seed);
            (0..400)
                .filter_map(|_| Some(Schedule::Random.next(&mut chance, nodes)?.fault))
                .collect()
        };
        assert_eq!(draw(7, 3), draw(7, 3));
        assert_ne!(draw(7, 1), draw(8, 1));
        let (one, three) = (draw(7, 1), draw(7, 3));
        assert!(OF_ONE.iter().all(|fault| one.contains(fault)));
        let of_three = OF_NODES.iter().chain(&OF_CLUSTERS).chain(&[Fault::Restart]);
        assert!(of_three.clone().all(|fault| three.contains(fault)));
        let never = [Fault::Any, Fault::DoubleLoss];
        assert!(never.iter().all(|fault| !one.contains(fault) && !three.contains(fault)));
        let mut given = Schedule::Given(vec![Fault::Kill.into()].into_iter());
        let mut chance = Chance::new(0);
        assert_eq!(given.next(&mut chance, 3), Some(Fault::Kill.into()));
        assert_eq!(given.next(&mut chance, 3), None);
    }

    #[test]
    fn a_fault_may_have_a_time() {
        let command = clap::Command::new("soak");
        let parse = |text: &str| PlannedParser.parse_ref(&command, None, text.as_ref());
        let paused = Planned { fault: Fault::Pause, time: Some(Duration::from_secs(15)) };
        assert_eq!(parse("pause=15s").expect("a fault with a time"), paused);
        assert_eq!(parse("stop-app").expect("a fault"), Fault::StopApp.into());
        assert!(parse("pause=x").is_err() && parse("party").is_err());
    }

    #[test]
    fn chance_stays_between() {
        let mut chance = Chance::new(3);
        let (least, most) = (Duration::from_secs(5), Duration::from_secs(40));
        let drawn: Vec<_> = (0..1_000).map(|_| chance.between(least, most)).collect();
        assert!(drawn.iter().all(|time| (least..=most).contains(time)));
        assert!(drawn.contains(&least) && drawn.contains(&most));
    }
}
