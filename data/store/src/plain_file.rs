//! Opening files without following a link that lies in their place: what is written through a link may be somebody
//! else's file.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

/// Makes `open` fail where the last part of the path is a symbolic link.
///
/// ```
/// # use std::fs::OpenOptions;
/// # use arinar_store::plain_file::nofollow;
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("file"), "contents")?;
/// std::os::unix::fs::symlink("file", folder.path().join("link"))?;
/// assert!(nofollow(OpenOptions::new().write(true)).open(folder.path().join("file")).is_ok());
/// assert!(nofollow(OpenOptions::new().write(true)).open(folder.path().join("link")).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn nofollow(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
}
