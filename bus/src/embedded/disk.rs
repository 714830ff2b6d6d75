//! The file layer: as much of a file system as the log needs, so that tests can put one under it that loses what was
//! not synced. Blocking; called from the log's own threads.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// A directory tree.
pub(crate) trait Disk: Send + Sync + 'static {
    /// Makes `dir` and what is above it, durably.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names of the files in `dir`.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes an empty file; an older one of that name is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens a file that is there.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Takes a name away; open files stay readable.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Puts `from` in the place of `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub(crate) trait File: Send + Sync + 'static {
    /// Writes all of `bytes` at `position`.
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;
    /// Fills `bytes` from `position`.
    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()>;
    /// Its length, bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts it.
    fn cut(&self, len: u64) -> io::Result<()>;
    /// Makes its bytes and its length durable.
    fn sync(&self) -> io::Result<()>;
}

/// Reads all of a file.
pub(crate) fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The operating system's.
pub(crate) struct Real;

impl Disk for Real {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        // Each new name is synced in the directory above it.
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.make_dir(parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync_dir(parent.unwrap_or(Path::new("."))),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?
            .map(|entry| entry?.file_name().into_string().map_err(|name| io::Error::other(format!("{name:?}"))))
            .collect()
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(fs::OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

impl File for fs::File {
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.write_all_at(bytes, position)
    }

    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()> {
        self.read_exact_at(bytes, position)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn cut(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        // The length is flushed with the bytes, since they could not be found again without it; times are not.
        self.sync_data()
    }
}
