//! Opening of files without following symbolic links: writing through a link could change a file of another program.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

/// Makes `open` fail if the last component of the path is a symbolic link.
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
