//! Errors of checkpoints.

use std::{
    io,
    path::{Path, PathBuf},
};

use arinar_collective::{CollectiveError, JobError};
use arinar_protocol::exit_code;
use arinar_store::{StoreError, lease::LeaseError};

/// An error of saving, finding or reading a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// An operation on the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another run holds the lease of the folder, or has taken it over.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A file differs from its entry in the manifest.
    #[error("damaged checkpoint: {url}: {what}")]
    Damaged {
        /// URL of the file.
        url: String,
        /// A description of the damage.
        what: String,
    },
    /// The header of a file of tensors cannot be created.
    #[error("cannot create the header of {file}: {source}")]
    Layout {
        /// The file.
        file: String,
        /// Error of safetensors.
        source: safetensors::SafeTensorError,
    },
    /// The run has checkpoints and all of them are damaged.
    #[error(
        "none of the checkpoints in {url} is intact ({problems}); move them away to start a new run, or \
         set run.dir to a new folder and checkpoint.resume to an intact checkpoint"
    )]
    NoneIntact {
        /// URL of the run.
        url: String,
        /// One problem per checkpoint.
        problems: String,
    },
    /// The run already has checkpoints, and `resume` is `none`.
    #[error(
        "{url} already holds the checkpoint {newest}; set checkpoint.resume=auto to resume from it, \
         or run.dir to a new folder"
    )]
    RunExists {
        /// URL of the run.
        url: String,
        /// Folder of its newest checkpoint.
        newest: String,
    },
    /// `resume` is a checkpoint of the run itself that is not its newest.
    #[error(
        "checkpoint.resume {place} is older than the checkpoint {newest} in the same folder, which training from it would \
         replace; set run.dir to a new folder to return to {place}, or checkpoint.resume=auto to continue from {newest}"
    )]
    LaterCheckpoints {
        /// The place given.
        place: String,
        /// Folder of the run's newest checkpoint.
        newest: String,
    },
    /// A folder has the name of a step that the run will save, and belongs to another program.
    #[error(
        "{url} is not a checkpoint of this program (it has no manifest or state of one, or is a link), and the run would \
         save its own there; move it away, or set run.dir to another folder"
    )]
    ForeignFolder {
        /// URL of the folder.
        url: String,
    },
    /// There is no checkpoint where `resume` points to.
    #[error("no checkpoint in {url}; is it the run.dir of a run that has saved one?")]
    NoCheckpoint {
        /// The URL given.
        url: String,
    },
    /// The checkpoint holds another model.
    #[error(
        "the checkpoint {url} is of another model: its {key} is {theirs}, the configuration says \
         {ours}; set {key}={theirs}, or run.dir to a new folder"
    )]
    OtherModel {
        /// URL of the checkpoint.
        url: String,
        /// The first key that differs.
        key: String,
        /// Value in the checkpoint.
        theirs: String,
        /// Value in the configuration.
        ours: String,
    },
    /// The weights contain NaN or infinity.
    #[error("the weights are not finite after step {step}; this state is not saved")]
    NotFinite {
        /// The step.
        step: u64,
    },
    /// There is not enough memory for a copy of the tensors of a file.
    #[error("no memory for a copy of {file} ({bytes} bytes): {source}")]
    Memory {
        /// The file.
        file: String,
        /// Size of the copy.
        bytes: u64,
        /// Error of the system.
        source: std::io::Error,
    },
    /// Tensors cannot be copied from the GPU.
    #[error("cannot copy the tensors of {file} from the GPU: {source}")]
    Gpu {
        /// The file.
        file: String,
        /// Error of CUDA.
        source: arinar_collective::cuda::CudaError,
    },
    /// The user's cache folder, the default location of the spool, is unknown.
    #[error("neither HOME nor XDG_CACHE_HOME is set; set checkpoint.spool_dir to a folder on a local disk")]
    NoCacheFolder,
    /// The spool has no room for another checkpoint.
    #[error("{} has no room: {what}", .path.display())]
    SpoolFull {
        /// Folder of the spool.
        path: PathBuf,
        /// The limit that is exceeded.
        what: String,
    },
    /// The spool has no room for another checkpoint because earlier ones are not uploaded yet.
    #[error(
        "{what}; {waits}: nothing saved is lost; make room or raise checkpoint.spool_limit, and start again to upload it"
    )]
    NoRoom {
        /// The limit that is exceeded.
        what: String,
        /// The backlog in the spool, the store, and the beginning of its outage, as text.
        waits: String,
    },
    /// The thread that writes a checkpoint panicked or could not be started.
    #[error("the thread writing the checkpoint of step {step} ended unexpectedly")]
    Thread {
        /// The step.
        step: u64,
    },
    /// The URL of the run cannot be used.
    #[error(transparent)]
    RunUrl(StoreError),
    /// Checkpoints of an earlier start, which must be uploaded before the run can resume, are not uploaded.
    #[error("{what}")]
    NotUploaded {
        /// A description in one line, with the fix.
        what: String,
    },
    /// A background thread cannot be started.
    #[error(transparent)]
    SpawnThread(std::io::Error),
    /// A description that ranks exchange cannot be serialized or parsed.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A collective operation failed, or another rank ends the job.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

impl JobError for CheckpointError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::RunUrl(_)
            | Self::RunExists { .. }
            | Self::LaterCheckpoints { .. }
            | Self::ForeignFolder { .. }
            | Self::NoCheckpoint { .. }
            | Self::NoneIntact { .. }
            | Self::NoCacheFolder
            | Self::OtherModel { .. } => exit_code::CONFIGURATION,
            Self::Store(error) if error.is_configuration() => exit_code::CONFIGURATION,
            Self::Lease(error) if error.is_configuration() => exit_code::CONFIGURATION,
            Self::Collective(error) => error.exit_code(),
            _ => exit_code::FAILED,
        }
    }

    fn other_rank(rank: usize, exit_code: u8) -> Self {
        Self::Collective(CollectiveError::other_rank(rank, exit_code))
    }
}

/// Converts an error of the file system into one of the store, which distinguishes a full disk.
pub(crate) fn disk_error(path: &Path, source: io::Error) -> StoreError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full { url: path.display().to_string(), source }
        }
        _ => StoreError::File { path: path.to_path_buf(), source },
    }
}
