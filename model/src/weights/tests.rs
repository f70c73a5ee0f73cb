use std::fs;
use std::path::PathBuf;

use tch::{Device, Kind};

use super::*;

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_slice(values)
}

fn tensors(entries: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    entries.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect()
}

fn folder(test: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("arinar-weights-{test}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn a_saved_file_loads_in_every_precision() {
    let folder = folder("round-trip");
    let path = folder.join("w.safetensors");
    for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
        let saved = tensors(&[
            ("a.weight", tensor(&[1.5, -2.0, 0.25, 8.0, 0.0, 1.0]).view([2, 3]).to_kind(kind)),
            ("b", tensor(&[3.0]).view([]).to_kind(kind)),
            ("mixed", tensor(&[7.0])),
        ]);
        let facts = BTreeMap::from([("scale".to_owned(), "0.2325".to_owned())]);
        save(&path, &saved, &facts).unwrap();
        let loaded = tensors(&[
            ("a.weight", tensor(&[0.0; 6]).view([2, 3])),
            ("b", tensor(&[0.0]).view([])),
            ("mixed", tensor(&[0.0])),
        ]);
        load(&path, &loaded).unwrap();
        assert_eq!(loaded["a.weight"], saved["a.weight"].to_kind(Kind::Float));
        assert_eq!(loaded["b"].double_value(&[]), 3.0);
        assert_eq!(loaded["mixed"].double_value(&[0]), 7.0);
        assert_eq!(metadata(&path, &read(&path).unwrap()).unwrap(), facts);
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "a temporary file is left behind");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn all_differences_are_reported_and_nothing_is_loaded() {
    let folder = folder("mismatch");
    let path = folder.join("w.safetensors");
    let file = tensors(&[("same", tensor(&[1.0])), ("shape", tensor(&[1.0, 2.0])), ("extra", tensor(&[1.0]))]);
    save(&path, &file, &BTreeMap::new()).unwrap();
    let model = tensors(&[("same", tensor(&[9.0])), ("shape", tensor(&[1.0])), ("absent", tensor(&[1.0]))]);
    let error = load(&path, &model).unwrap_err();
    let message = error.to_string();
    for part in ["shape is [2] where the model has [1]", "missing: absent", "unexpected: extra", "w.safetensors"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains('\n'));
    assert_eq!(model["same"].double_value(&[0]), 9.0);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_damaged_or_missing_file_is_an_error() {
    let folder = folder("damaged");
    let path = folder.join("w.safetensors");
    let file = tensors(&[("a", tensor(&[1.0; 100]))]);
    assert!(matches!(load(&path, &file), Err(WeightsError::Io { .. })));
    save(&path, &file, &BTreeMap::new()).unwrap();
    let bytes = read(&path).unwrap();
    for length in [0, 7, 20, bytes.len() - 1] {
        let error = load_bytes(&path, &bytes[..length], &file, &[]).unwrap_err();
        match length {
            0 => assert!(matches!(error, WeightsError::NotWeights { what: "empty", .. }), "{error:?}"),
            _ => assert!(matches!(error, WeightsError::Format { .. }), "{length}: {error:?}"),
        }
        if length > 8 {
            assert!(error.to_string().contains(&format!("it has {length} of at least ")), "{error}");
        }
    }
    let integers = tensors(&[("a", Tensor::from_slice(&[1_i64; 100]))]);
    save(&path, &integers, &BTreeMap::new()).unwrap();
    assert!(matches!(load(&path, &file), Err(WeightsError::Dtype { .. })));
    let nowhere = folder.join("absent").join("w.safetensors");
    assert!(matches!(save(&nowhere, &file, &BTreeMap::new()), Err(WeightsError::Io { .. })));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    let folder = folder("bytes");
    let path = folder.join("w.safetensors");
    let file = tensors(&[("a", tensor(&[1.0])), ("b", tensor(&[1.0]).to_kind(Kind::Half))]);
    let facts: BTreeMap<_, _> = (0..9).map(|index| (format!("key{index}"), "x".to_owned())).collect();
    save(&path, &file, &facts).unwrap();
    let first = read(&path).unwrap();
    save(&path, &file, &facts).unwrap();
    assert_eq!(first, read(&path).unwrap());
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_store_lists_its_parameters_by_name() {
    let store = nn::VarStore::new(Device::Cpu);
    let _ = store.root().zeros("b", &[1]);
    let _ = store.root().zeros_no_train("buffer", &[1]);
    let _ = store.root().zeros("a", &[1]);
    let names: Vec<String> = trainable(&store).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(named(&store).len(), 3);
}

#[test]
fn weight_decay_excludes_vectors_biases_and_the_head() {
    assert!(decays("class_emb.weight", &[10, 4]));
    assert!(decays("fake_latent", &[1, 4]));
    assert!(!decays("encoder_norm.weight", &[4]));
    assert!(!decays("z_proj.bias", &[4]));
    assert!(!decays("arhead.head.weight", &[12, 4]));
}

#[test]
fn a_header_is_read_from_the_start_of_a_file() {
    let facts = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    let bytes = serialize(&PathBuf::from("w"), &tensors(&[("a", tensor(&[1.0, 2.0]))]), &facts).unwrap();
    let end = bytes.len() - 8;
    for cut in [bytes.len(), end] {
        let header = header_of(&bytes[..cut]).unwrap();
        assert!(header.contains_key("a") && header["__metadata__"]["key"] == "value");
    }
    for other in [&bytes[..end - 1], &bytes[..7], b"", b"PK\x03\x04 a zip file of some length", &[0xff; 40]] {
        assert!(header_of(other).is_none());
    }
}
