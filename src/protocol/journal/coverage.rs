//! Whether a part of the journal that ends now goes back far enough: to the first record of a
//! lost owner whose ack may not have been sent.

use std::collections::HashMap;
use std::sync::Arc;

use super::Batch;
use crate::protocol::partition::PartitionId;

/// What the batches of a part of the journal say of their writers.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    writers: HashMap<Arc<str>, Span>,
    /// Who has recorded something in them.
    partitions: HashMap<PartitionId, Vec<Arc<str>>>,
}

/// The batches of one writer.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: u64,
    last: u64,
    /// By the last.
    open_from: u64,
}

impl Coverage {
    /// Takes note of a batch. Of batches that were written twice too.
    pub fn note(&mut self, batch: &Batch) {
        let Batch { writer, number, open_from, .. } = batch;
        let new = Span { first: *number, last: *number, open_from: *open_from };
        let span = self.writers.entry(Arc::clone(writer)).or_insert(new);
        span.first = span.first.min(*number);
        if span.last <= *number {
            (span.last, span.open_from) = (*number, *open_from);
        }
        for record in &batch.records {
            let writers = self.partitions.entry(record.partition).or_default();
            if !writers.contains(writer) {
                writers.push(Arc::clone(writer));
            }
        }
    }

    /// Whether everything is here that was recorded in a partition and whose ack was not
    /// sent: somebody has recorded something in it, and of all who did, it is known from
    /// which batch on they were open, and the batches go back to that.
    #[must_use]
    pub fn of(&self, partition: PartitionId) -> bool {
        let whole = |writer: &Arc<str>| {
            let span = self.writers.get(writer);
            span.is_some_and(|s| s.open_from > 0 && s.first <= s.open_from)
        };
        self.partitions.get(&partition).is_some_and(|writers| writers.iter().all(whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::journal::Record;

    fn batch(writer: &str, number: u64, open_from: u64, partitions: &[u32]) -> Batch {
        let record = |partition: &u32| {
            format!(
                r#"{{"task":"t","resource":"r","partition":{partition},"attempt":1,"at_us":1,"took_us":1,"outcome":"executed"}}"#
            )
        };
        let read = |json: String| serde_json::from_str::<Record>(&json).expect("a record");
        Batch {
            v: Batch::VERSION,
            writer: writer.into(),
            number,
            open_from,
            late: 0,
            ended: false,
            worker: crate::WorkerId::new("w").expect("a name"),
            records: partitions.iter().map(|p| read(record(p))).collect(),
        }
    }

    fn covered(batches: &[Batch]) -> Vec<u32> {
        let mut coverage = Coverage::default();
        batches.iter().for_each(|batch| coverage.note(batch));
        (0..4).filter(|p| coverage.of(PartitionId::new(*p))).collect()
    }

    #[test]
    fn what_nobody_recorded_is_not_covered() {
        assert!(covered(&[]).is_empty());
        assert_eq!(covered(&[batch("a", 7, 7, &[1, 2])]), [1, 2]);
        assert!(covered(&[batch("a", 7, 7, &[])]).is_empty());
    }

    #[test]
    fn the_last_batch_says_how_far_back() {
        let early = batch("a", 7, 2, &[1]);
        assert!(covered(std::slice::from_ref(&early)).is_empty(), "2 to 6 are missing");
        let late = batch("a", 9, 7, &[2]);
        assert_eq!(covered(&[early.clone(), late.clone()]), [1, 2]);
        assert_eq!(covered(&[early.clone(), late.clone(), early]), [1, 2], "written twice");
        assert!(covered(&[late, batch("a", 10, 0, &[])]).is_empty(), "it is not known");
        assert!(covered(&[batch("a", 0, 0, &[1])]).is_empty(), "nor here");
    }

    #[test]
    fn all_who_were_there_count() {
        let whole = batch("a", 7, 7, &[1, 2]);
        assert_eq!(covered(&[whole.clone(), batch("b", 3, 2, &[2, 3])]), [1]);
        assert_eq!(covered(&[whole, batch("b", 3, 2, &[2, 3]), batch("b", 2, 2, &[])]), [1, 2, 3]);
    }
}
