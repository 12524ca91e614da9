//! Media objects in a folder: for `wyd dev` and single nodes.
//!
//! A write goes to a temporary file first and is then linked into its place, so that an object is
//! whole or absent. Signed addresses are paths on the node's own public port; `address` makes and
//! checks them, `Incoming` is an upload on its way.

mod address;
mod incoming;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, SeekFrom};

use super::{
    DownloadTerms, MediaError, MediaStore, Object, OpenUpload, PartOf, Put, SignedRequest,
    UploadTerms, check_parts,
};

pub use address::Grant;
pub use incoming::Incoming;

use address::Signer;

const OBJECTS: &str = "objects";
const PARTS: &str = "parts";
const TEMPORARY: &str = "temporary";
/// Names the object inside the folder of an upload in parts.
const KEY_FILE: &str = "key";

/// Media objects in a folder.
#[derive(Debug, Clone)]
pub struct FileStore {
    folder: PathBuf,
    signer: Signer,
}

impl FileStore {
    /// Opens the folder, made when it is missing, with a key for its addresses.
    ///
    /// # Errors
    /// [`MediaError::Refused`] when the folder cannot be written.
    pub async fn open(folder: &str) -> Result<Self, MediaError> {
        let folder = PathBuf::from(folder);
        let cannot = |error: std::io::Error| {
            MediaError::Refused(format!("media.folder {}: {error}", folder.display()))
        };
        for name in [OBJECTS, PARTS, TEMPORARY] {
            let made = tokio::fs::create_dir_all(folder.join(name)).await;
            made.map_err(cannot)?;
        }
        let signer = Signer::of(&folder).await.map_err(cannot)?;
        Ok(Self { folder, signer })
    }

    /// Reads a signed address: what whoever has it may do.
    ///
    /// # Errors
    /// In plain words, why it is no good; nothing in it was done.
    pub fn grant(&self, method: &str, path_and_query: &str) -> Result<Grant, &'static str> {
        self.signer.grant(method, path_and_query, SystemTime::now())
    }

    /// Begins to take what a grant allows to upload; `None` when it allows none.
    ///
    /// # Errors
    /// See [`MediaError`].
    pub async fn receive(&self, grant: &Grant) -> Result<Option<Incoming>, MediaError> {
        let (target, size, sha256) = match grant {
            Grant::Put { key, size, sha256 } => (self.object(key)?, *size, Some(*sha256)),
            Grant::Part {
                key,
                upload,
                number,
                size,
            } => {
                let part = PartOf {
                    key,
                    upload,
                    number: *number,
                };
                (self.part(part).await?, *size, None)
            }
            Grant::Get { .. } => return Ok(None),
        };
        let incoming = Incoming::begin(self.temporary(), target, size, sha256).await?;
        Ok(Some(incoming))
    }

    /// Returns the file of an object.
    ///
    /// # Errors
    /// [`MediaError::Refused`] for a key that is no path below the folder.
    fn object(&self, key: &str) -> Result<PathBuf, MediaError> {
        let is_plain = |segment: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            !segment.is_empty() && segment.chars().all(allowed)
        };
        if !key.split('/').all(is_plain) {
            return Err(MediaError::Refused(format!("{key:?} is no key")));
        }
        Ok(self.folder.join(OBJECTS).join(key))
    }

    fn temporary(&self) -> PathBuf {
        let name = uuid::Uuid::new_v4().to_string();
        self.folder.join(TEMPORARY).join(name)
    }

    /// Returns the folder of an upload in parts that was begun for this key.
    async fn parts(&self, key: &str, upload: &str) -> Result<PathBuf, MediaError> {
        if uuid::Uuid::try_parse(upload).is_err() {
            return Err(MediaError::NotFound);
        }
        let folder = self.folder.join(PARTS).join(upload);
        let known = tokio::fs::read_to_string(folder.join(KEY_FILE)).await?;
        if known == key {
            Ok(folder)
        } else {
            Err(MediaError::NotFound)
        }
    }

    async fn part(&self, part: PartOf<'_>) -> Result<PathBuf, MediaError> {
        let folder = self.parts(part.key, part.upload).await?;
        Ok(folder.join(format!("{:05}", part.number)))
    }

    /// Puts a finished temporary file in its place, unless there is something.
    async fn link(&self, temporary: &Path, key: &str) -> Result<Put, MediaError> {
        let object = self.object(key)?;
        if let Some(folder) = object.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        let linked = tokio::fs::hard_link(temporary, &object).await;
        tokio::fs::remove_file(temporary).await?;
        match linked {
            Ok(()) => Ok(Put::Created),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Put::Exists),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl MediaStore for FileStore {
    async fn put(&self, key: &str, body: Bytes, _content_type: &str) -> Result<Put, MediaError> {
        let temporary = self.temporary();
        write_file(&temporary, &body).await?;
        self.link(&temporary, key).await
    }

    async fn read(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, MediaError> {
        let mut file = tokio::fs::File::open(self.object(key)?).await?;
        file.seek(SeekFrom::Start(offset)).await?;
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).await?;
        Ok(bytes.into())
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, MediaError> {
        match tokio::fs::metadata(self.object(key)?).await {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), MediaError> {
        absent_is_fine(tokio::fs::remove_file(self.object(key)?).await)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Object>, MediaError> {
        let root = self.folder.join(OBJECTS);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            let mut entries = tokio::fs::read_dir(folder).await?;
            while let Some(entry) = entries.next_entry().await? {
                let about = entry.metadata().await?;
                if about.is_dir() {
                    folders.push(entry.path());
                    continue;
                }
                let path = entry.path();
                let key = path.strip_prefix(&root).ok().and_then(Path::to_str);
                let is_asked =
                    |key: &&str| key.starts_with(prefix) && after.is_none_or(|after| *key > after);
                if let Some(key) = key.filter(is_asked) {
                    found.push(Object {
                        key: key.to_owned(),
                        size: about.len(),
                        written_at: about.modified()?,
                    });
                }
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found.truncate(limit);
        Ok(found)
    }

    async fn begin_parts(&self, key: &str, _content_type: &str) -> Result<String, MediaError> {
        self.object(key)?;
        let upload = uuid::Uuid::new_v4().to_string();
        let folder = self.folder.join(PARTS).join(&upload);
        tokio::fs::create_dir(&folder).await?;
        write_file(&folder.join(KEY_FILE), key.as_bytes()).await?;
        Ok(upload)
    }

    async fn put_part(&self, part: PartOf<'_>, body: Bytes) -> Result<(), MediaError> {
        let target = self.part(part).await?;
        let temporary = self.temporary();
        write_file(&temporary, &body).await?;
        Ok(tokio::fs::rename(temporary, target).await?)
    }

    async fn complete_parts(&self, key: &str, upload: &str, size: u64) -> Result<Put, MediaError> {
        let folder = self.parts(key, upload).await?;
        let mut parts = Vec::new();
        let mut found = 0;
        let mut entries = tokio::fs::read_dir(&folder).await?;
        while let Some(entry) = entries.next_entry().await? {
            if entry.file_name() != KEY_FILE {
                found += entry.metadata().await?.len();
                parts.push(entry.path());
            }
        }
        check_parts(found, size)?;
        parts.sort();
        let temporary = self.temporary();
        let mut whole = tokio::fs::File::create(&temporary).await?;
        for part in parts {
            let mut part = tokio::fs::File::open(part).await?;
            tokio::io::copy(&mut part, &mut whole).await?;
        }
        whole.sync_all().await?;
        let put = self.link(&temporary, key).await?;
        tokio::fs::remove_dir_all(folder).await?;
        Ok(put)
    }

    async fn abort_parts(&self, key: &str, upload: &str) -> Result<(), MediaError> {
        match self.parts(key, upload).await {
            Ok(folder) => absent_is_fine(tokio::fs::remove_dir_all(folder).await),
            Err(MediaError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, MediaError> {
        let mut found = Vec::new();
        let mut entries = tokio::fs::read_dir(self.folder.join(PARTS)).await?;
        while let Some(entry) = entries.next_entry().await? {
            let about = entry.path().join(KEY_FILE);
            let Ok(key) = tokio::fs::read_to_string(&about).await else {
                continue;
            };
            if let (true, Ok(upload)) = (key.starts_with(prefix), entry.file_name().into_string()) {
                let begun_at = tokio::fs::metadata(about).await?.modified()?;
                found.push(OpenUpload {
                    key,
                    upload,
                    begun_at,
                });
            }
        }
        Ok(found)
    }

    async fn sign_put(
        &self,
        key: &str,
        terms: &UploadTerms,
        ttl: Duration,
    ) -> Result<SignedRequest, MediaError> {
        let grant = Grant::Put {
            key: key.to_owned(),
            size: terms.size,
            sha256: terms.sha256,
        };
        let headers = vec![("content-type".to_owned(), terms.content_type.clone())];
        Ok(SignedRequest {
            headers,
            ..self.signer.sign(&grant, SystemTime::now() + ttl)
        })
    }

    async fn sign_part(
        &self,
        part: PartOf<'_>,
        size: u64,
        ttl: Duration,
    ) -> Result<SignedRequest, MediaError> {
        let grant = Grant::Part {
            key: part.key.to_owned(),
            upload: part.upload.to_owned(),
            number: part.number,
            size,
        };
        Ok(self.signer.sign(&grant, SystemTime::now() + ttl))
    }

    async fn sign_get(
        &self,
        key: &str,
        terms: &DownloadTerms,
        ttl: Duration,
    ) -> Result<String, MediaError> {
        let grant = Grant::Get {
            key: key.to_owned(),
            content_type: terms.content_type.clone(),
            disposition: terms.disposition.clone(),
        };
        Ok(self.signer.sign(&grant, SystemTime::now() + ttl).url)
    }

    async fn ping(&self) -> Result<(), MediaError> {
        tokio::fs::metadata(self.folder.join(OBJECTS)).await?;
        Ok(())
    }
}

impl From<std::io::Error> for MediaError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::NotFound,
            _ => Self::Unavailable(Box::new(error)),
        }
    }
}

async fn write_file(path: &Path, body: &[u8]) -> Result<(), MediaError> {
    let mut file = tokio::fs::File::create(path).await?;
    file.write_all(body).await?;
    Ok(file.sync_all().await?)
}

fn absent_is_fine(done: std::io::Result<()>) -> Result<(), MediaError> {
    match done {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
