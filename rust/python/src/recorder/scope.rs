//! Selection of the code to record, by the file that it claims to come from, and the source in that file.

use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, canonicalize};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::leaf::unicode;

/// Longest path that the kernel opens.
const MAX_PATH: usize = 4096;
/// Maximum size of a source file, because a program can claim that any file is its source.
const MAX_SOURCE: u64 = 1 << 26;

/// Name of a file as Python gives it and as the file system encodes it.
pub struct FileName {
    pub text: Vec<u8>,
    path: PathBuf,
}

impl FileName {
    pub fn new(name: &Bound<'_, PyString>) -> FileName {
        // A name that the file system cannot encode is compared as text.
        let encoded = PyBytes::new(name.py(), b"");
        let encoded = encode(name).unwrap_or(encoded);
        FileName {
            text: unicode(name),
            path: Path::new(OsStr::from_bytes(encoded.as_bytes())).to_owned(),
        }
    }

    /// Returns whether this can be the name of a file, unlike `<string>`.
    fn is_path(&self) -> bool {
        let bytes = self.path.as_os_str().as_bytes();
        !bytes.is_empty() && bytes.len() <= MAX_PATH && !(bytes.starts_with(b"<") && bytes.ends_with(b">"))
    }

    /// Returns the file's bytes if it is a readable regular file.
    pub fn read(&self) -> Option<Vec<u8>> {
        if !self.is_path() || !self.path.metadata().ok()?.is_file() {
            return None;
        }
        // If the file has become a FIFO in the meantime, opening it must not block.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(NONBLOCK)
            .open(&self.path)
            .ok()?;
        read_source(&file)
    }
}

const NONBLOCK: i32 = if cfg!(target_os = "linux") { 0o4000 } else { 0x4 };

fn read_source(file: &File) -> Option<Vec<u8>> {
    let metadata = file.metadata().ok().filter(|found| found.is_file())?;
    if metadata.len() > MAX_SOURCE {
        return None;
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    file.take(MAX_SOURCE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Returns the file system encoding of a name. Runs no code of the program.
fn encode<'py>(name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyBytes>> {
    // SAFETY: `name` is a string, and the result is a new reference or null with an exception set.
    let encoded = unsafe {
        let encoded = pyo3::ffi::PyUnicode_EncodeFSDefault(name.as_ptr());
        Bound::from_owned_ptr_or_err(name.py(), encoded)?
    };
    Ok(encoded.cast_into::<PyBytes>()?)
}

/// Selects the code to record.
///
/// A file can have many names: through `..`, through symbolic links, or relative to the working directory. Names are
/// first compared as written; if that does not decide, both sides are resolved and compared again.
pub struct Scope {
    files: Vec<FileName>,
    /// Folders, and archives, which serve as folders.
    folders: Vec<FileName>,
    resolved: OnceCell<Resolved>,
}

struct Resolved {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Scope {
    pub fn new(files: &[Bound<'_, PyString>], folders: &[Bound<'_, PyString>]) -> Scope {
        Scope {
            files: files.iter().map(FileName::new).collect(),
            folders: folders.iter().map(FileName::new).collect(),
            resolved: OnceCell::new(),
        }
    }

    /// Returns the files and folders as given, without duplicates.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let is_new = |folder: &&FileName| self.files.iter().all(|file| file.text != folder.text);
        let all = self.files.iter().chain(self.folders.iter().filter(is_new));
        all.map(|name| name.text.as_slice())
    }

    pub fn contains(&self, file: &FileName) -> bool {
        if self.files.iter().any(|own| own.text == file.text) {
            return true;
        }
        if !file.is_path() {
            return false;
        }
        let resolved = self.resolved.get_or_init(|| Resolved {
            files: resolve_all(&self.files),
            folders: resolve_all(&self.folders),
        });
        let whole = resolve(&file.path);
        resolved.files.contains(&whole)
            || resolved.folders.iter().any(|folder| whole.starts_with(folder))
            || (!resolved.folders.is_empty() && lies_in(&file.path, &resolved.folders))
    }
}

/// Returns whether a file's name goes through one of the folders. A link beyond that folder may lead elsewhere.
fn lies_in(path: &Path, folders: &[PathBuf]) -> bool {
    for part in path.ancestors().skip(1) {
        if part.as_os_str().is_empty() {
            break;
        }
        let resolved = resolve(part);
        if folders.iter().any(|folder| resolved.starts_with(folder)) {
            return true;
        }
        // A `..` leaves the folders named before it.
        if part.ends_with("..") {
            break;
        }
    }
    false
}

fn resolve_all(names: &[FileName]) -> Vec<PathBuf> {
    let paths = names.iter().filter(|name| name.is_path());
    paths.map(|name| resolve(&name.path)).collect()
}

/// Return the absolute path of a file with links, `.`, and `..` resolved. Runs no Python code.
#[pyfunction]
pub fn real_path(name: &Bound<'_, PyString>) -> OsString {
    resolve(&FileName::new(name).path).into_os_string()
}

/// Returns the path without links, `.`, and `..`, even if its last parts do not exist (anymore) or are in an archive.
fn resolve(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut existing = path;
    let mut resolved = loop {
        if let Ok(found) = canonicalize(if existing.as_os_str().is_empty() {
            Path::new(".")
        } else {
            existing
        }) {
            break found;
        }
        let (Some(last), Some(parent)) = (existing.components().next_back(), existing.parent()) else {
            break existing.to_owned();
        };
        missing.push(last);
        existing = parent;
    };
    for part in missing.into_iter().rev() {
        match part {
            Component::ParentDir => drop(resolved.pop()),
            Component::CurDir => {}
            part => resolved.push(part),
        }
    }
    resolved
}
