//! What was recorded and not acked yet, of each tenure: a reader of the journal has to go
//! back to the first of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use tokio::time::Instant;

use super::writer::Position;

/// So long is kept in mind what a tenure left that was lost. By then its partition has
/// another owner, or nobody was heard of in it for a while.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Nothing.
const NONE: u64 = u64::MAX;

/// Where the first record of a tenure stands that is not acked. Its clones say the same.
#[derive(Debug, Clone)]
pub(crate) struct Unacked(Arc<AtomicU64>);

impl Unacked {
    /// This was recorded.
    pub(super) fn recorded(&self, position: Position) {
        self.0.fetch_min(position.0, Ordering::Relaxed);
    }

    /// Something is to be acked that somebody else has recorded, nobody knows when.
    pub(crate) fn foreign(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The acks of everything up to `acked` were sent; `last` was recorded last.
    pub(crate) fn acked(&self, acked: Position, last: Position) {
        let next = if acked < last { acked.0 + 1 } else { NONE };
        self.0.store(next, Ordering::Relaxed);
    }
}

/// Those of all tenures.
#[derive(Debug, Default)]
pub(super) struct AllUnacked(Vec<(Unacked, Option<Instant>)>);

impl AllUnacked {
    /// For one more tenure.
    pub(super) fn add(&mut self) -> Unacked {
        let unacked = Unacked(Arc::new(AtomicU64::new(NONE)));
        self.0.push((unacked.clone(), None));
        unacked
    }

    /// The first record that is not acked.
    pub(super) fn first(&mut self) -> Option<Position> {
        let mut first = NONE;
        self.0.retain_mut(|(unacked, ended)| {
            let is_over = Arc::strong_count(&unacked.0) == 1;
            fence(Ordering::Acquire);
            let position = unacked.0.load(Ordering::Relaxed);
            if is_over {
                let ended = ended.get_or_insert_with(Instant::now);
                if position == NONE || ended.elapsed() > REMEMBERED {
                    return false;
                }
            }
            first = first.min(position);
            true
        });
        (first != NONE).then_some(Position(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> Position {
        Position(position)
    }

    #[test]
    fn the_first_of_all_tenures_counts() {
        let mut all = AllUnacked::default();
        let (one, two) = (all.add(), all.add());
        assert_eq!(all.first(), None);
        one.recorded(at(3));
        two.recorded(at(4));
        one.recorded(at(5));
        assert_eq!(all.first(), Some(at(3)));
        one.acked(at(3), at(5));
        assert_eq!(all.first(), Some(at(4)), "5 or what is before it");
        two.acked(at(4), at(4));
        assert_eq!(all.first(), Some(at(4)));
        one.acked(at(5), at(5));
        assert_eq!(all.first(), None);
        one.foreign();
        one.recorded(at(6));
        assert_eq!(all.first(), Some(at(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_lost_tenure_leaves_is_kept_in_mind() {
        let mut all = AllUnacked::default();
        let (done, lost) = (all.add(), all.add());
        lost.recorded(at(1));
        drop((done, lost));
        assert_eq!((all.first(), all.0.len()), (Some(at(1)), 1));
        tokio::time::advance(REMEMBERED * 2).await;
        assert_eq!((all.first(), all.0.len()), (None, 0));
    }
}
