//! Writing one rank's files beside the training.
//!
//! Weights, averages and moments change in the optimizer's step alone. So a thread may read them while the next
//! forward and backward pass runs, provided that the next step waits for it ([`Snapshot::wait_until_copied`]). Where
//! memory holds a copy, the thread copies first and writes afterwards, and the wait is short; where it does not, the
//! thread writes straight from the live tensors, and the wait is as long as that takes.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc,
    thread::JoinHandle,
};

use arinar_store::StoreError;
use memmap2::MmapMut;
use tch::{Device, Tensor};
use xxhash_rust::xxh3::Xxh3;

use super::{CheckpointError, FileEntry, shard::Layout};
use arinar_collective::{
    cuda::{CudaError, Gpu, HostCopier},
    host_memory,
};

/// The files of one rank: their entries for the manifest.
pub(super) type Written = Result<Vec<FileEntry>, CheckpointError>;

/// Bytes hashed and written at a time: they stay in a core's cache between the two.
const CHUNK: usize = 1 << 20;

/// Files on their way to the disk.
pub(super) struct Snapshot {
    step: u64,
    /// Closed once the live tensors are no longer read, however that came about.
    copied: Option<mpsc::Receiver<()>>,
    thread: JoinHandle<Written>,
}

impl Snapshot {
    /// Starts to write `files` into `folder`; `copy` says whether memory holds a copy of them.
    ///
    /// The caller must not change the tensors before [`Snapshot::wait_until_copied`] has returned.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(folder: PathBuf, step: u64, files: Vec<Layout>, copy: bool) -> Result<Self, CheckpointError> {
        let (reading, copied) = mpsc::channel();
        let work = move || write(&folder, step, files, copy, reading);
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(work);
        let thread = thread.map_err(|_| CheckpointError::Thread { step })?;
        Ok(Self { step, copied: Some(copied), thread })
    }

    /// One of no files, which has its copy once `copied` is closed.
    #[cfg(test)]
    pub fn copying(copied: mpsc::Receiver<()>) -> Self {
        Self { step: 0, copied: Some(copied), thread: std::thread::spawn(|| Ok(Vec::new())) }
    }

    /// Returns when the tensors may be changed.
    pub fn wait_until_copied(&mut self) {
        if let Some(copied) = self.copied.take() {
            // Nothing is ever sent: the channel closes, also when the thread panics.
            let _ = copied.recv();
        }
    }

    /// True once [`Snapshot::join`] would not wait.
    pub fn is_written(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the files.
    ///
    /// # Errors
    /// A disk that is full or fails, weights that are not finite.
    pub fn join(self) -> Written {
        self.thread.join().unwrap_or(Err(CheckpointError::Thread { step: self.step }))
    }
}

/// `reading` is dropped when the live tensors are needed no more.
fn write(folder: &Path, step: u64, files: Vec<Layout>, copy: bool, reading: mpsc::Sender<()>) -> Written {
    let mut files: Vec<Source> = files.into_iter().map(Source::live).collect();
    let mut copier = None;
    for file in &mut files {
        file.copy(copy, &mut copier)?;
    }
    drop(copier);
    if copy {
        drop(reading);
        check_and_write(folder, step, files)
    } else {
        let written = check_and_write(folder, step, files);
        drop(reading);
        written
    }
}

fn check_and_write(folder: &Path, step: u64, files: Vec<Source>) -> Written {
    // Of all files before the first is written: what is not finite must not cost a write.
    if files.iter().any(|file| file.layout.weights && !file.is_finite()) {
        return Err(CheckpointError::NotFinite { step });
    }
    std::fs::create_dir_all(folder).map_err(|source| disk_error(folder, source))?;
    // Each file's copy is freed as soon as it is written.
    files.into_iter().map(|file| file.write(folder)).collect()
}

/// A file's tensors: live ones, or a copy.
struct Source {
    layout: Layout,
    memory: Vec<Memory>,
}

enum Memory {
    /// In host memory once `Source::copy` has been called.
    Live(Tensor),
    /// Pages of their own rather than the heap's, which never gives any back (see `allocator`).
    Copy(MmapMut, usize),
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Live(tensor) => host_memory::bytes(tensor),
            Self::Copy(pages, len) => &pages[..*len],
        }
    }
}

impl Source {
    fn live(mut layout: Layout) -> Self {
        let memory = layout.sources.drain(..).map(Memory::Live).collect();
        Self { layout, memory }
    }

    /// Copies the tensors of a GPU, and with `all` those in host memory, too. `copier` is made when it is needed.
    fn copy(&mut self, all: bool, copier: &mut Option<HostCopier>) -> Result<(), CheckpointError> {
        let name = &self.layout.name;
        for memory in &mut self.memory {
            let Memory::Live(tensor) = memory else { continue };
            if host_memory::is_host(tensor) && !all {
                continue;
            }
            let bytes = tensor.numel() * size_of::<f32>();
            let failed = |source| CheckpointError::Memory { file: name.clone(), bytes: bytes as u64, source };
            // A mapping of no bytes is an error.
            let mut pages = MmapMut::map_anon(bytes.max(1)).map_err(failed)?;
            #[cfg(target_os = "linux")]
            // Fewer page faults; without it the copy only takes longer.
            let _ = pages.advise(memmap2::Advice::HugePage);
            match tensor.device() {
                Device::Cuda(ordinal) => copy_from_gpu(ordinal, tensor, &mut pages[..bytes], copier)
                    .map_err(|source| CheckpointError::Gpu { file: name.clone(), source })?,
                _ => pages[..bytes].copy_from_slice(host_memory::bytes(tensor)),
            }
            *memory = Memory::Copy(pages, bytes);
        }
        Ok(())
    }

    fn is_finite(&self) -> bool {
        self.memory.iter().all(|memory| is_finite(memory.bytes()))
    }

    /// Writes a new file through to the disk; only the manifest makes it valid. What an earlier run has left is gone by
    /// now, so that a file of that name is somebody else's: it is not replaced.
    fn write(self, folder: &Path) -> Result<FileEntry, CheckpointError> {
        let path = folder.join(&self.layout.name);
        self.write_to(&path).map_err(|source| disk_error(&path, source).into())
    }

    fn write_to(&self, path: &Path) -> io::Result<FileEntry> {
        let mut out = Hashed { file: File::create_new(path)?, hash: Xxh3::new(), bytes: 0 };
        out.write(&self.layout.header)?;
        for stretch in &self.layout.stretches {
            out.write(&self.memory[stretch.source].bytes()[stretch.bytes.clone()])?;
        }
        out.file.sync_all()?;
        let xxh3_128 = format!("{:032x}", out.hash.digest128());
        Ok(FileEntry { name: self.layout.name.clone(), bytes: out.bytes, xxh3_128 })
    }
}

/// The optimizer's step, which this thread's caller has put on libtorch's stream, comes before the copy there.
fn copy_from_gpu(
    ordinal: usize,
    tensor: &Tensor,
    out: &mut [u8],
    copier: &mut Option<HostCopier>,
) -> Result<(), CudaError> {
    match copier {
        Some(copier) => copier.copy(tensor, out),
        None => copier.insert(HostCopier::new(&Gpu::open(ordinal)?)?).copy(tensor, out),
    }
}

/// A file and the hash of what was written to it.
struct Hashed {
    file: File,
    hash: Xxh3,
    bytes: u64,
}

impl Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            self.hash.update(chunk);
            self.file.write_all(chunk)?;
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// True if no float is infinite or NaN, which are those whose exponent is all ones.
fn is_finite(floats: &[u8]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    floats.chunks(CHUNK).all(|chunk| {
        // No early exit within a chunk, so that the compiler takes many floats at a time.
        let bad = chunk.chunks_exact(4).fold(0, |bad, float| {
            let bits = u32::from_le_bytes([float[0], float[1], float[2], float[3]]);
            bad | u32::from(bits & EXPONENT == EXPONENT)
        });
        bad == 0
    })
}

/// What the disk said about a file.
pub(super) fn disk_error(path: &Path, source: io::Error) -> StoreError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full { url: path.display().to_string(), source }
        }
        _ => StoreError::File { path: path.to_path_buf(), source },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checkpoint::shard::tests::with_tensors;

    #[test]
    fn a_copy_and_the_live_tensors_give_the_same_files() {
        with_tensors(|tensors| {
            let write = |copy: bool| {
                let folder = tempfile::tempdir().unwrap();
                let files = tensors.lay_out(0, 1).unwrap();
                let mut snapshot = Snapshot::start(folder.path().to_path_buf(), 3, files, copy).unwrap();
                snapshot.wait_until_copied();
                let entries = snapshot.join().unwrap();
                for entry in &entries {
                    let bytes = std::fs::read(folder.path().join(&entry.name)).unwrap();
                    assert_eq!(*entry, FileEntry::of(&entry.name, &bytes));
                    safetensors::SafeTensors::deserialize(&bytes).unwrap();
                }
                entries
            };
            let entries = write(true);
            assert_eq!(entries.len(), 3);
            assert_eq!(entries, write(false));
        });
    }

    #[test]
    fn what_changes_after_the_copy_is_not_written() {
        with_tensors(|tensors| {
            let folder = tempfile::tempdir().unwrap();
            let files = tensors.lay_out(0, 1).unwrap();
            let mut snapshot = Snapshot::start(folder.path().to_path_buf(), 3, files, true).unwrap();
            snapshot.wait_until_copied();
            let _ = tensors.parameters.values().shallow_clone().fill_(f64::NAN);
            snapshot.join().unwrap();
            let bytes = std::fs::read(folder.path().join("model-00001-of-00001.safetensors")).unwrap();
            let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(parsed.tensor("a.bias").unwrap().data()[..4], 0.5_f32.to_le_bytes());
        });
    }

    #[test]
    fn weights_that_are_not_finite_are_not_written() {
        with_tensors(|tensors| {
            let _ = tensors.parameters.values().shallow_clone().narrow(0, 2, 1).fill_(f64::INFINITY);
            let folder = tempfile::tempdir().unwrap();
            let files = tensors.lay_out(0, 1).unwrap();
            let snapshot = Snapshot::start(folder.path().to_path_buf(), 3, files, true).unwrap();
            let error = snapshot.join().unwrap_err();
            assert!(matches!(error, CheckpointError::NotFinite { step: 3 }), "{error}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        });
    }

    #[test]
    fn every_kind_of_unfinite_float_is_seen() {
        let ones = vec![1.0_f32; 1000];
        for (bad, finite) in [(f32::NAN, false), (f32::NEG_INFINITY, false), (f32::MAX, true), (-0.0, true)] {
            for place in [0, 1, 999] {
                let mut floats = ones.clone();
                floats[place] = bad;
                let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
                assert_eq!(is_finite(&bytes), finite, "{bad} at {place}");
            }
        }
    }
}
