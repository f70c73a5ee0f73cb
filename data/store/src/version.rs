//! Versions of objects.

use object_store::UpdateVersion;

/// The version of an object. Every write of the object has a different one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub(crate) UpdateVersion);
