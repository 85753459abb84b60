//! A path goes in, the file's bytes come out, mapped instead of copied. It never writes, and nothing else in this
//! crate is `unsafe`.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// The bytes of a file, read by the operating system when they are touched.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// When it cannot be opened, is empty (nothing of a model is), or cannot be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "is not a file with content"));
        }
        // SAFETY: the bytes must not change while they are mapped. The model cache, the only writer of model files,
        // verifies a file before it is ever mapped, makes it read-only and replaces it by renaming, which leaves
        // this mapping on the old content. Everything read from it is checked before it is used, so a file that an
        // operator changes in place all the same gives an error or wrong numbers; a file that is cut short ends the
        // process with SIGBUS, as with every program that maps files.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
