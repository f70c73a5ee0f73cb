//! How a dataset is made, whatever its records come from: encoded pictures or converted files.
//!
//! Each rank makes every world-th shard; rank 0 collects what the ranks did and writes the manifest, which makes the
//! dataset exist. Shards of a killed run are checked and kept.

mod agree;
mod error;
mod existing;
mod finish;
mod ownership;
mod plan;
mod share;

pub use error::EncodeError;
pub(crate) use share::OpenShard;

use agree::agree;
use ownership::Earlier;
use plan::Plan;

use crate::format::manifest::VaeFacts;
use crate::pictures::image_source::ImageSource;
use crate::progress::Progress;
use crate::ranks::Ranks;
use arinar_store::Store;
use arinar_store::lease::Lease;

/// All pictures that a dataset is made of, in the order of their names.
pub(crate) trait Pictures {
    /// How many there are.
    fn len(&self) -> usize;
    /// Class names, sorted; a label is an index into them.
    fn classes(&self) -> &[String];
    /// Class of picture `index`.
    fn label(&self, index: usize) -> u32;
    /// Name of picture `index`.
    fn name(&self, index: usize) -> &str;
}

impl Pictures for ImageSource {
    fn len(&self) -> usize {
        ImageSource::len(self)
    }

    fn classes(&self) -> &[String] {
        ImageSource::classes(self)
    }

    fn label(&self, index: usize) -> u32 {
        ImageSource::label(self, index)
    }

    fn name(&self, index: usize) -> &str {
        ImageSource::name(self, index)
    }
}

/// Turns pictures into records.
pub(crate) trait Maker {
    /// What there is to turn.
    fn pictures(&self) -> &dyn Pictures;

    /// The VAE's safetensors file, to be kept beside the shards; none where it is not known.
    fn tokenizer(&self) -> Result<Option<Vec<u8>>, EncodeError>;

    /// Appends the records of `pictures` to a shard, in this order; tells `handled` how many it has done on the way.
    fn fill(
        &self,
        pictures: &[u32],
        shard: &mut OpenShard<'_>,
        handled: &mut dyn FnMut(u64),
    ) -> Result<(), EncodeError>;
}

/// The settings that make a dataset what it is, and how to go about it.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// What tells datasets apart that are made in another way; none for encoded pictures.
    pub(crate) kind: Option<&'static str>,
    pub(crate) image_size: u32,
    pub(crate) vae: VaeFacts,
    pub(crate) seed: u64,
    pub(crate) shard_bytes: u64,
    pub(crate) skip_bad: bool,
    pub(crate) overwrite: bool,
}

/// Everything a rank needs to make shards.
pub(crate) struct Job<M> {
    maker: M,
    recipe: Recipe,
    store: Store,
    plan: Plan,
    /// Shape of a record's moments: [2C, H, W].
    shape: [usize; 3],
    /// The dataset at `--out`, whose files may be replaced.
    earlier: Earlier,
}

impl<M: Maker> Job<M> {
    /// Plans the shards and looks at what lies at `out`.
    ///
    /// # Errors
    /// Another dataset or a file of something else lies there, or the store fails.
    pub(crate) fn new(maker: M, recipe: Recipe, shape: [usize; 3], out: &str) -> Result<Self, EncodeError> {
        let plan = Plan::new(maker.pictures(), &recipe, shape);
        let store = Store::open(out)?;
        let earlier = Earlier::find(&store, &plan.encode_id, recipe.overwrite)?;
        if let Some(weights) = maker.tokenizer()? {
            earlier.check_tokenizer(&store, &weights)?;
        }
        Ok(Self { maker, recipe, store, plan, shape, earlier })
    }

    /// The right to write, for all ranks, and another look at what is there: it may be new.
    fn lease(&self) -> Result<Lease, EncodeError> {
        let lease = Lease::acquire(&self.store, "arinar-data, making a dataset")?;
        Earlier::find(&self.store, &self.plan.encode_id, self.recipe.overwrite)?;
        Ok(lease)
    }
}

/// Makes a dataset; on rank 0 the text returned says what was done, on the others it is empty.
///
/// # Errors
/// On rank 0 what went wrong on any rank; on the others [`EncodeError::Ranks`] without a message of their own.
pub(crate) fn make<M: Maker>(prepared: Result<Job<M>, EncodeError>, ranks: &Ranks) -> Result<String, EncodeError> {
    let identities: Vec<String> = agree(ranks, prepared.as_ref().map(|job| job.plan.encode_id.clone()), |_| ())?;
    if identities.iter().any(|identity| *identity != identities[0]) {
        return Err(EncodeError::Ranks {
            message: "the ranks see different pictures or VAE weights; give all machines the same files".to_owned(),
            configuration: true,
        });
    }
    let job = prepared?;
    let lease = if ranks.rank() == 0 { job.lease().map(Some) } else { Ok(None) };
    agree(ranks, lease.as_ref().map(|_| ()), |_| ())?;
    let lease = lease?;
    let mut progress = Progress::new("pictures", job.maker.pictures().len() as u64, ranks.rank() != 0);
    let share = job.make_share(ranks, &mut progress);
    let shares = agree(ranks, share.as_ref(), |reported| progress.advance(reported))?;
    let finished = match &lease {
        Some(lease) => job.finish(shares, &progress, lease),
        None => Ok(String::new()),
    };
    agree(ranks, finished.as_ref().map(|_| ()), |_| ())?;
    finished
}
