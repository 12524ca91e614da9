//! A plain HTTP client: one kept connection to the server API.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::Endpoint;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One HTTP connection.
pub(crate) struct HttpConnection {
    requests: SendRequest<Full<Bytes>>,
    authority: String,
    /// Moves the bytes; ends with the connection.
    driver: JoinHandle<()>,
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl HttpConnection {
    /// Connects.
    pub(crate) async fn open(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let stream = endpoint.connect(None, TIMEOUT).await?;
        let (requests, connection) = timeout(TIMEOUT, handshake(TokioIo::new(stream))).await??;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP connection ended");
            }
        });
        Ok(Self {
            requests,
            authority: endpoint.authority(),
            driver,
        })
    }

    /// Returns the status of a path.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<StatusCode> {
        let (status, _) = self.send(Method::GET, path, None, Bytes::new()).await?;
        Ok(status)
    }

    /// Calls a method of the server API.
    pub(crate) async fn api(
        &mut self,
        method: &str,
        api_key: &str,
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        let path = format!("/api/{method}");
        let (status, answer) = self
            .send(Method::POST, &path, Some(api_key), body)
            .await
            .with_context(|| format!("POST {path}"))?;
        // The API says errors in the body, with status 200.
        if status != StatusCode::OK || answer.starts_with(b"{\"error\"") {
            bail!(
                "POST {path} was answered {status}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(answer)
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        api_key: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("content-type", "application/json");
        if let Some(api_key) = api_key {
            request = request.header("x-api-key", api_key);
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            self.requests.ready().await?;
            let response = self.requests.send_request(request).await?;
            let status = response.status();
            let answer = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, answer))
        };
        Ok(timeout(TIMEOUT, exchange).await??)
    }
}
