//! Dead letters: jobs that can never succeed are kept with the reason, and stall nobody.
//!
//! The consumer keeps them here; [`letters`] finds them again and sends them back.

pub mod letters;

use shared::events::dead_letter_topic;
use store::job_log::{JobLog, JobLogError, ReceivedJob};

use crate::consumer::Failure;
use crate::consumer::attempt::{failed_job, source_topic};
use crate::metrics::{Metrics, TopicLabel};

/// Puts jobs aside for good.
#[derive(Clone, Copy)]
pub(crate) struct DeadLetters<'a> {
    job_log: &'a dyn JobLog,
    metrics: &'a Metrics,
}

impl<'a> DeadLetters<'a> {
    pub(crate) fn new(job_log: &'a dyn JobLog, metrics: &'a Metrics) -> Self {
        Self { job_log, metrics }
    }

    /// Keeps a job with the reason why it is not tried again.
    ///
    /// # Errors
    /// See [`JobLogError`]: the job's position must not move on.
    pub(crate) async fn keep(
        &self,
        job: &ReceivedJob,
        failure: &Failure,
    ) -> Result<(), JobLogError> {
        let topic = dead_letter_topic(source_topic(job));
        self.job_log
            .append(failed_job(topic.clone(), job, failure))
            .await?;
        tracing::warn!(
            topic = job.topic,
            partition = job.partition,
            offset = job.offset,
            error = failure.error,
            "job went to the dead letters"
        );
        self.metrics.dlq.get_or_create(&TopicLabel { topic }).inc();
        Ok(())
    }
}
