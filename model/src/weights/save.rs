//! Saving tensors to a safetensors file.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::error::WeightsError;

/// Writes `tensors` and `metadata` to a safetensors file. Equal contents give equal bytes. The file is replaced
/// atomically: it is written under a temporary name in the same directory, synced and renamed.
///
/// # Errors
/// Returns an error if the file cannot be written or a tensor has no safetensors type.
pub fn save(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let header = header(path, tensors, metadata)?;
    write(path, &header, tensors).map_err(|source| WeightsError::io(path, source))
}

/// Returns the bytes that [`save`] writes; `path` is only used in errors.
///
/// # Errors
/// Returns an error if a tensor has no safetensors type.
pub fn serialize(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WeightsError> {
    let header = header(path, tensors, metadata)?;
    let data: usize = tensors.values().map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum();
    let mut bytes = Vec::with_capacity(header.len() + data);
    write_to(&mut bytes, &header, tensors).map_err(|source| WeightsError::io(path, source))?;
    Ok(bytes)
}

/// Returns the length-prefixed JSON header. The safetensors crate is not used here because it writes metadata in the
/// random order of a `HashMap`, so that equal weights would have different hashes.
fn header(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WeightsError> {
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, tensor) in in_file_order(tensors) {
        let end = offset + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let dtype = dtype_name(path, name, tensor.kind())?;
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [offset, end]});
        entries.insert(name.clone(), entry);
        offset = end;
    }
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([(json.len() as u64).to_le_bytes().as_slice(), &json].concat())
}

/// Orders tensors by decreasing element size, so that every tensor is aligned for readers that map the file.
fn in_file_order(tensors: &BTreeMap<String, Tensor>) -> Vec<(&String, &Tensor)> {
    let mut ordered: Vec<_> = tensors.iter().collect();
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
    ordered
}

fn dtype_name(path: &Path, name: &str, kind: Kind) -> Result<&'static str, WeightsError> {
    match kind {
        Kind::Half => Ok("F16"),
        Kind::BFloat16 => Ok("BF16"),
        Kind::Float => Ok("F32"),
        Kind::Double => Ok("F64"),
        Kind::Int64 => Ok("I64"),
        Kind::Uint8 => Ok("U8"),
        _ => Err(WeightsError::Unsavable { path: path.to_owned(), name: name.to_owned(), kind }),
    }
}

fn write(path: &Path, header: &[u8], tensors: &BTreeMap<String, Tensor>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The temporary file has a unique name; its permissions follow the umask.
    let mut temporary = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".tmp")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    let mut file = BufWriter::new(&mut temporary);
    write_to(&mut file, header, tensors)?;
    file.flush()?;
    drop(file);
    temporary.as_file().sync_all()?;
    temporary.persist(path)?;
    Ok(())
}

fn write_to(file: &mut impl Write, header: &[u8], tensors: &BTreeMap<String, Tensor>) -> io::Result<()> {
    file.write_all(header)?;
    for (_, tensor) in in_file_order(tensors) {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel()).map_err(io::Error::other)?;
        file.write_all(&bytes)?;
    }
    Ok(())
}
