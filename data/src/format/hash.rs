//! The hash of files and the checksum of records.

use crc_fast::{CrcAlgorithm, Digest};

/// Returns the XXH3-128 of `bytes` in hexadecimal.
pub fn xxh3_hex(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3(bytes))
}

/// Returns the XXH3-128 of `bytes`.
pub(crate) fn xxh3(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

/// Returns the CRC32C of a record: its moments, then `label` and `source_id` in little-endian order.
pub(crate) fn record_checksum(moments: &[u8], label: i64, source_id: i64) -> u32 {
    let mut tail = [0; 16];
    tail[..8].copy_from_slice(&label.to_le_bytes());
    tail[8..].copy_from_slice(&source_id.to_le_bytes());
    // CRC-32/ISCSI is another name of CRC32C.
    let mut crc = Digest::new(CrcAlgorithm::Crc32Iscsi);
    crc.update(moments);
    crc.update(&tail);
    crc.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_crc32c() {
        // Computed bit by bit in Python: reflected polynomial 0x82f63b78 over the moments and both numbers.
        let moments: Vec<u8> = (0..1000).map(|byte| (byte % 256) as u8).collect();
        assert_eq!(record_checksum(&moments, 3, -4), 0x7bd3_da5a);
    }
}
