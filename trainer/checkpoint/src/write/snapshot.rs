//! Writing the files of one rank while training continues.
//!
//! Weights, averages and moments change only in the optimizer step. Therefore, a thread may read them during the next forward
//! and backward pass, provided that the next optimizer step waits for it ([`Snapshot::wait_until_copied`]). If there is
//! enough memory, the thread first copies the tensors and then writes the copy, and the wait is short. Otherwise, it writes
//! directly from the live tensors, and the wait takes as long as the write.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc,
    thread::JoinHandle,
};

use memmap2::MmapMut;
use tch::{Device, Tensor};

use crate::{
    error::{CheckpointError, disk_error},
    format::{hash::HashingWriter, manifest::FileEntry, tensor_files::FileLayout},
};
use arinar_collective::{
    cuda::{CudaError, Gpu, HostCopier},
    host_memory,
};

/// The manifest entries of the files of one rank.
pub(crate) type Written = Result<Vec<FileEntry>, CheckpointError>;

/// Bytes checked at a time.
const CHUNK: usize = 1 << 20;

/// A handle to the thread that writes the files.
pub(crate) struct Snapshot {
    step: u64,
    /// Closed once the live tensors are no longer read, even if the thread panics.
    copied: Option<mpsc::Receiver<()>>,
    thread: JoinHandle<Written>,
}

impl Snapshot {
    /// Starts writing `files` to `folder`. `copy` states whether there is enough memory for a copy of the tensors.
    ///
    /// The caller must not change the tensors before [`Snapshot::wait_until_copied`] has returned.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(
        folder: PathBuf,
        step: u64,
        files: Vec<FileLayout>,
        copy: bool,
    ) -> Result<Self, CheckpointError> {
        let (reading, copied) = mpsc::channel();
        let work = move || write(&folder, step, files, copy, reading);
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(work);
        let thread = thread.map_err(|_| CheckpointError::Thread { step })?;
        Ok(Self { step, copied: Some(copied), thread })
    }

    /// Creates a snapshot without files that is copied once `copied` is closed.
    pub(crate) fn until_closed(copied: mpsc::Receiver<()>) -> Self {
        Self { step: 0, copied: Some(copied), thread: std::thread::spawn(|| Ok(Vec::new())) }
    }

    /// Waits until the tensors may be changed.
    pub(crate) fn wait_until_copied(&mut self) {
        if let Some(copied) = self.copied.take() {
            // Nothing is ever sent: the channel closes, even if the thread panics.
            let _ = copied.recv();
        }
    }

    /// Returns true once [`Snapshot::join`] would not block.
    pub(crate) fn is_written(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the files are written and returns their entries.
    ///
    /// # Errors
    /// Returns an error if the disk is full or fails, or if the weights are not finite.
    pub(crate) fn join(self) -> Written {
        self.thread.join().unwrap_or(Err(CheckpointError::Thread { step: self.step }))
    }
}

/// Drops `reading` as soon as the live tensors are no longer needed.
fn write(folder: &Path, step: u64, files: Vec<FileLayout>, copy: bool, reading: mpsc::Sender<()>) -> Written {
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
    // Checked before the first file is written, so that invalid weights cost no write.
    if files.iter().any(|file| file.layout.is_weights && !file.is_finite()) {
        return Err(CheckpointError::NotFinite { step });
    }
    std::fs::create_dir_all(folder).map_err(|source| disk_error(folder, source))?;
    // The copy of each file is freed as soon as it is written.
    files.into_iter().map(|file| file.write(folder)).collect()
}

/// The tensors of a file: the live ones, or a copy.
struct Source {
    layout: FileLayout,
    tensors: Vec<TensorBytes>,
}

enum TensorBytes {
    /// In host memory once `Source::copy` has been called.
    Live(Tensor),
    /// In separate pages instead of the heap, which never returns memory to the system
    /// (`arinar_collective::machine::allocator`).
    Copy(MmapMut, usize),
}

impl TensorBytes {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Live(tensor) => host_memory::bytes(tensor),
            Self::Copy(pages, len) => &pages[..*len],
        }
    }
}

impl Source {
    fn live(mut layout: FileLayout) -> Self {
        let tensors = layout.sources.drain(..).map(TensorBytes::Live).collect();
        Self { layout, tensors }
    }

    /// Copies tensors on a GPU, and with `all` also those in host memory. `copier` is created when it is first needed.
    fn copy(&mut self, all: bool, copier: &mut Option<HostCopier>) -> Result<(), CheckpointError> {
        let name = &self.layout.name;
        for bytes_of in &mut self.tensors {
            let TensorBytes::Live(tensor) = bytes_of else { continue };
            if host_memory::is_host(tensor) && !all {
                continue;
            }
            let bytes = tensor.numel() * size_of::<f32>();
            let failed = |source| CheckpointError::Memory { file: name.clone(), bytes: bytes as u64, source };
            // Mapping zero bytes is an error.
            let mut pages = MmapMut::map_anon(bytes.max(1)).map_err(failed)?;
            #[cfg(target_os = "linux")]
            // Reduces page faults. If it fails, the copy only takes longer.
            let _ = pages.advise(memmap2::Advice::HugePage);
            match tensor.device() {
                Device::Cuda(ordinal) => copy_from_gpu(ordinal, tensor, &mut pages[..bytes], copier)
                    .map_err(|source| CheckpointError::Gpu { file: name.clone(), source })?,
                _ => pages[..bytes].copy_from_slice(host_memory::bytes(tensor)),
            }
            *bytes_of = TensorBytes::Copy(pages, bytes);
        }
        Ok(())
    }

    fn is_finite(&self) -> bool {
        self.tensors.iter().all(|tensor| is_finite(tensor.bytes()))
    }

    /// Writes a new file and syncs it to the disk; only the manifest makes it valid. Files of earlier runs are deleted by now,
    /// so an existing file of that name belongs to another program and is not replaced.
    fn write(self, folder: &Path) -> Result<FileEntry, CheckpointError> {
        let path = folder.join(&self.layout.name);
        self.write_to(&path).map_err(|source| disk_error(&path, source).into())
    }

    fn write_to(&self, path: &Path) -> io::Result<FileEntry> {
        let mut writer = HashingWriter::new(File::create_new(path)?);
        writer.write_all(&self.layout.header)?;
        for extent in &self.layout.extents {
            writer.write_all(&self.tensors[extent.source].bytes()[extent.bytes.clone()])?;
        }
        let (file, entry) = writer.finish(&self.layout.name);
        file.sync_all()?;
        Ok(entry)
    }
}

/// The copy is ordered after the optimizer step, which the caller of this thread has submitted to libtorch's stream.
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

/// Returns true if no float is infinite or NaN: these are the floats whose exponent is all ones.
fn is_finite(floats: &[u8]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    floats.chunks(CHUNK).all(|chunk| {
        // No early exit within a chunk, so that the compiler vectorizes the loop.
        let bad = chunk.chunks_exact(4).fold(0, |bad, float| {
            let bits = u32::from_le_bytes([float[0], float[1], float[2], float[3]]);
            bad | u32::from(bits & EXPONENT == EXPONENT)
        });
        bad == 0
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::test_tensors::TestTensors;

    #[test]
    fn a_copy_and_the_live_tensors_give_the_same_files() {
        let test_tensors = TestTensors::new();
        let tensors = test_tensors.set();
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
    }

    #[test]
    fn changes_after_the_copy_are_not_written() {
        let test_tensors = TestTensors::new();
        let tensors = test_tensors.set();
        let folder = tempfile::tempdir().unwrap();
        let files = tensors.lay_out(0, 1).unwrap();
        let mut snapshot = Snapshot::start(folder.path().to_path_buf(), 3, files, true).unwrap();
        snapshot.wait_until_copied();
        let _ = tensors.parameters.shallow_clone().fill_(f64::NAN);
        snapshot.join().unwrap();
        let bytes = std::fs::read(folder.path().join("model-00001-of-00001.safetensors")).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(parsed.tensor("a.bias").unwrap().data()[..4], 0.5_f32.to_le_bytes());
    }

    #[test]
    fn weights_that_are_not_finite_are_not_written() {
        let test_tensors = TestTensors::new();
        let tensors = test_tensors.set();
        let _ = tensors.parameters.shallow_clone().narrow(0, 2, 1).fill_(f64::INFINITY);
        let folder = tempfile::tempdir().unwrap();
        let files = tensors.lay_out(0, 1).unwrap();
        let snapshot = Snapshot::start(folder.path().to_path_buf(), 3, files, true).unwrap();
        let error = snapshot.join().unwrap_err();
        assert!(matches!(error, CheckpointError::NotFinite { step: 3 }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn every_kind_of_non_finite_float_is_detected() {
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
