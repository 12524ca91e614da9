//! The workers' metrics: names and help texts once, here.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

const SECONDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// Label: a worker role.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabel {
    /// `persist`.
    pub role: &'static str,
}

/// Label: a role and what a job came to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobLabel {
    /// `persist`.
    pub role: &'static str,
    /// `done`, `already_done`, `retry` (with its whole batch), `later` or `poison`.
    pub result: &'static str,
}

/// Label: a partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartitionLabel {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
}

/// Label: a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TopicLabel {
    /// The topic.
    pub topic: String,
}

type MakeHistogram = fn() -> Histogram;

/// All counters of a worker: made once a process, every role gets a clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Jobs by role and result.
    pub jobs: Family<JobLabel, Counter>,
    /// How long a batch took.
    pub job_seconds: Family<RoleLabel, Histogram, MakeHistogram>,
    /// From a job's event to its effect.
    pub job_age_seconds: Family<RoleLabel, Histogram, MakeHistogram>,
    /// Jobs that wait.
    pub consumer_lag: Family<PartitionLabel, Gauge>,
    /// Dead letters.
    pub dlq: Family<TopicLabel, Counter>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let histogram: MakeHistogram = || Histogram::new(SECONDS);
        let metrics = Self {
            jobs: Family::default(),
            job_seconds: Family::new_with_constructor(histogram),
            job_age_seconds: Family::new_with_constructor(histogram),
            consumer_lag: Family::default(),
            dlq: Family::default(),
        };
        let m = metrics.clone();
        // The library appends `_total` to the names of counters.
        registry.register("wyd_jobs", "Jobs by role and result", m.jobs);
        registry.register(
            "wyd_job_seconds",
            "Time that a batch of jobs took",
            m.job_seconds,
        );
        registry.register(
            "wyd_job_age_seconds",
            "From a job's event to its effect",
            m.job_age_seconds,
        );
        registry.register(
            "wyd_consumer_lag",
            "Jobs that wait in a partition",
            m.consumer_lag,
        );
        registry.register("wyd_dlq", "Jobs that went to the dead letters", m.dlq);
        metrics
    }

    pub(crate) fn count(&self, role: &'static str, result: &'static str, jobs: usize) {
        self.jobs
            .get_or_create(&JobLabel { role, result })
            .inc_by(jobs as u64);
    }
}
