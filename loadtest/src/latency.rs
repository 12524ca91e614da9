//! Latencies: collected one by one, told as percentiles.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart; longer ones count as this long.
const LONGEST: Duration = Duration::from_secs(600);

/// A collection of latencies, to three digits.
#[derive(Debug)]
pub struct Latencies {
    micros: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        let longest = u64::try_from(LONGEST.as_micros()).expect("ten minutes fit");
        Self {
            // With bounds: a histogram that grows by itself takes its size at the time as the
            // limit when it is told to saturate.
            micros: Histogram::new_with_bounds(1, longest, 3)
                .expect("the bounds are constants and right"),
        }
    }
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.micros
            .saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds all of another collection.
    pub fn merge(&mut self, other: &Self) {
        self.micros += &other.micros;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.micros.reset();
    }

    /// Returns the percentiles.
    pub fn summary(&self) -> LatencySummary {
        let millis = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
        let quantile = |quantile: f64| millis(self.micros.value_at_quantile(quantile));
        LatencySummary {
            p50: quantile(0.50),
            p95: quantile(0.95),
            p99: quantile(0.99),
            max: millis(self.micros.max()),
        }
    }
}

/// Percentiles of a latency, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LatencySummary {
    /// Half are faster.
    pub p50: f64,
    /// 95 % are faster.
    pub p95: f64,
    /// 99 % are faster.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl fmt::Display for LatencySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            self.p50, self.p95, self.p99, self.max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        let mut others = Latencies::default();
        for millis in 1..=50 {
            latencies.record(Duration::from_millis(millis));
            others.record(Duration::from_millis(50 + millis));
        }
        latencies.merge(&others);
        let summary = latencies.summary();
        let is_near = |value: f64, wanted: f64| (value - wanted).abs() < wanted / 100.0;
        assert!(is_near(summary.p50, 50.0), "{summary}");
        assert!(is_near(summary.p99, 99.0), "{summary}");
        assert!(is_near(summary.max, 100.0), "{summary}");
    }
}
