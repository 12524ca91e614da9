//! `/media/…`: signed uploads and downloads of the media folder.
//!
//! Whoever has an address may do what is signed in it, and nothing else. What is downloaded was
//! uploaded by users: browsers must neither guess its type nor run it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    ETAG, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use futures::{StreamExt, stream};
use store::media::{FileStore, Grant, MediaError, MediaStore};

/// Bytes read from an object at once.
const CHUNK: u64 = 256 * 1024;

/// Makes the routes.
pub(super) fn routes(files: Arc<FileStore>) -> Router {
    Router::new()
        .route("/media/{*key}", any(answer))
        .with_state(files)
}

async fn answer(State(files): State<Arc<FileStore>>, request: Request) -> Response {
    let address = request
        .uri()
        .path_and_query()
        .map_or("", |path| path.as_str());
    let grant = match files.grant(request.method().as_str(), address) {
        Ok(grant) => grant,
        Err(why) => return refuse(StatusCode::FORBIDDEN, why),
    };
    let answered = match (request.method(), &grant) {
        (
            &Method::GET,
            Grant::Get {
                key,
                content_type,
                disposition,
            },
        ) => download(files, key, content_type, disposition).await,
        _ => upload(&files, &grant, request.into_body()).await,
    };
    answered.unwrap_or_else(|error| match error {
        MediaError::NotFound => refuse(StatusCode::NOT_FOUND, "there is no such file"),
        MediaError::Refused(why) => refuse(StatusCode::BAD_REQUEST, &why),
        MediaError::Unavailable(error) => {
            tracing::warn!(%error, "media folder failed");
            refuse(StatusCode::SERVICE_UNAVAILABLE, "the media folder failed")
        }
    })
}

async fn upload(files: &FileStore, grant: &Grant, body: Body) -> Result<Response, MediaError> {
    let Some(mut incoming) = files.receive(grant).await? else {
        return Ok(refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "nothing to upload here",
        ));
    };
    let mut body = body.into_data_stream();
    while let Some(bytes) = body.next().await {
        let broken = |_| MediaError::Refused("the body broke off".to_owned());
        incoming.write(&bytes.map_err(broken)?).await?;
    }
    let etag = incoming.finish().await?;
    Ok(([(ETAG, format!("\"{etag}\""))], StatusCode::OK).into_response())
}

async fn download(
    files: Arc<FileStore>,
    key: &str,
    content_type: &str,
    disposition: &str,
) -> Result<Response, MediaError> {
    let size = files.size(key).await?.ok_or(MediaError::NotFound)?;
    let key = key.to_owned();
    let chunks = stream::try_unfold(0, move |offset| {
        let (files, key) = (Arc::clone(&files), key.clone());
        async move {
            if offset >= size {
                return Ok(None);
            }
            let bytes: Bytes = files.read(&key, offset, CHUNK).await?;
            let next = offset + bytes.len() as u64;
            let is_cut = bytes.is_empty();
            if is_cut {
                Err(MediaError::NotFound)
            } else {
                Ok(Some((bytes, next)))
            }
        }
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    let value = |text: &str| {
        HeaderValue::from_str(text).map_err(|_| MediaError::Refused("no header".to_owned()))
    };
    headers.insert(CONTENT_TYPE, value(content_type)?);
    headers.insert(CONTENT_DISPOSITION, value(disposition)?);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; sandbox"),
    );
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("private, max-age=3600"),
    );
    Ok(response)
}

fn refuse(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}
