//! What a worker tells the coordinator, a line each on its standard output.

use super::Tally;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It runs, and other workers reach it here.
    Ready {
        /// Host and port.
        address: String,
    },
    /// It takes tasks.
    Started,
    /// The trap's handler has read the state and holds the resource.
    Holding {
        /// The resource.
        resource: u32,
        /// Since when.
        at_us: u64,
    },
    /// A task is executed.
    Executed {
        /// Which one.
        number: u32,
        /// When its handler started.
        start_us: u64,
        /// When its state was written.
        end_us: u64,
    },
    /// It ends, and this is what it counted.
    Tally(Tally),
}

impl Told {
    /// The line, with its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        match self {
            Self::Ready { address } => format!("ready {address}\n"),
            Self::Started => "started\n".to_owned(),
            Self::Holding { resource, at_us } => format!("holding {resource} {at_us}\n"),
            Self::Executed { number, start_us, end_us } => {
                format!("executed {number} {start_us} {end_us}\n")
            }
            Self::Tally(tally) => {
                // Numbers in a struct: nothing that JSON could not hold.
                let json = serde_json::to_string(tally).unwrap_or_default();
                format!("tally {json}\n")
            }
        }
    }

    /// Reads a line without its end; `None` if it is none of ours.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut numbers = rest.split(' ').map(str::parse::<u64>);
        let mut number = || numbers.next()?.ok();
        Some(match word {
            "ready" => Self::Ready { address: rest.to_owned() },
            "started" => Self::Started,
            "holding" => Self::Holding { resource: number()? as u32, at_us: number()? },
            "executed" => {
                Self::Executed { number: number()? as u32, start_us: number()?, end_us: number()? }
            }
            "tally" => Self::Tally(serde_json::from_str(rest).ok()?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_survives_its_line() {
        for told in [
            Told::Ready { address: "127.0.0.1:1".to_owned() },
            Told::Started,
            Told::Holding { resource: 1, at_us: 2 },
            Told::Executed { number: 1, start_us: 2, end_us: 3 },
            Told::Tally(Tally { executed: 7, ..Tally::default() }),
        ] {
            assert_eq!(Told::from_line(told.to_line().trim_end()), Some(told));
        }
        assert_eq!(Told::from_line("what?"), None);
    }
}
