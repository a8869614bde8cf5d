//! How long things took. Without the feature `metrics` nobody could read it, and
//! nothing is counted.

use std::time::Duration;

/// Upper bounds in seconds: from what a handler in this process takes, to what a
/// backlog does. Half a decade apart; every series is one for each of them.
#[cfg(feature = "metrics")]
const BOUNDS_S: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

/// See the [module](self). Atomics, and no lock.
#[derive(Debug)]
pub(crate) struct Histogram {
    #[cfg(feature = "metrics")]
    inner: prometheus::Histogram,
}

impl Histogram {
    /// With this name and explanation.
    #[cfg_attr(not(feature = "metrics"), expect(unused_variables, reason = "nobody reads it"))]
    pub(crate) fn new(name: &str, help: &str) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            inner: prometheus::Histogram::with_opts(
                prometheus::HistogramOpts::new(name, help).buckets(BOUNDS_S.to_vec()),
            )
            // Its name is ours, and the bounds rise.
            .unwrap_or_else(|error| unreachable!("{error}")),
        }
    }

    /// It took so long.
    #[cfg_attr(not(feature = "metrics"), expect(unused_variables, reason = "nobody reads it"))]
    pub(crate) fn observe(&self, took: Duration) {
        #[cfg(feature = "metrics")]
        self.inner.observe(took.as_secs_f64());
    }

    /// It as Prometheus has it.
    #[cfg(feature = "metrics")]
    pub(crate) fn collector(&self) -> &impl prometheus::core::Collector {
        &self.inner
    }
}
