//! Tests of which files are removed.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use super::{
    FILE_NAME, MpiSession,
    artifacts::{entries, host, job_number, remove_shared_memory, sessions_folder, user},
    record::SessionRecord,
    remove_leftovers,
};

#[test]
fn files_of_other_jobs_stay() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["vader_segment.a.0.3a220001.0", "vader_segment.a.0.3a220001.1", "vader_segment.a.0.3a220002.0"];
    let others = ["vader_segment.a.7.3a220001.0", "other.a.0.3a220001.0"];
    for name in names.iter().chain(&others) {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    std::fs::create_dir_all(folder.path().join("ompi.a.0/pid.5/0")).unwrap();
    std::fs::create_dir_all(folder.path().join("ompi.a.0/pid.55")).unwrap();
    let record = tempfile::tempdir().unwrap();
    let mut session = MpiSession::new(5, record.path().join(FILE_NAME));
    session.job = job_number(b"A=1\0PMIX_NAMESPACE=975306753\0B=2");
    remove_shared_memory(folder.path(), 0, &session.job.into_iter().collect());
    session.remove_folder(folder.path(), "ompi.a.0");
    let mut left: Vec<String> = entries(folder.path()).into_iter().map(|(_, name)| name).collect();
    left.sort();
    assert_eq!(left, ["ompi.a.0", others[1], names[2], others[0]]);
    assert!(folder.path().join("ompi.a.0/pid.55").exists() && !folder.path().join("ompi.a.0/pid.5").exists());
    assert_eq!(job_number(b"PMIX_NAMESPACE=prterun-a-5@1\0"), None);
}

/// Creates the folder of an mpirun with process ID 5, and the session that records it.
fn recorded(temporary: &Path) -> (PathBuf, MpiSession) {
    let folder = temporary.join(sessions_folder(user())).join("pid.5");
    std::fs::create_dir_all(folder.join("0")).unwrap();
    std::fs::create_dir(folder.join("pmix_dstor_ds21_5")).unwrap();
    for name in ["smdataseg-975306753-0", "smlockseg-975306753", "initial-pmix_shared-segment-0"] {
        std::fs::write(folder.join("pmix_dstor_ds21_5").join(name), "").unwrap();
    }
    let session = MpiSession::new(5, temporary.join(FILE_NAME));
    session.save(temporary);
    (folder, session)
}

#[test]
fn only_files_of_the_recorded_mpirun_are_removed() {
    let temporary = tempfile::tempdir().unwrap();
    let (folder, session) = recorded(temporary.path());
    let other_folder = folder.with_file_name("pid.6");
    std::fs::create_dir(&other_folder).unwrap();
    let left = SessionRecord::read(&session.record).unwrap();
    assert_eq!(left.remove_folder(), [975306753].into());
    assert!(!folder.exists() && other_folder.exists());
    // The folder of another mpirun with the same process ID, and a link in its place.
    std::fs::create_dir(&folder).unwrap();
    let another = || SessionRecord::read(&session.record).unwrap();
    let (device, inode) = left.identity.unwrap();
    for other in [
        SessionRecord { identity: Some((device, inode + 1_000_000)), ..another() },
        SessionRecord { identity: None, started: left.started + 3600, ..another() },
        SessionRecord { identity: None, started: left.started - 3600, ..another() },
    ] {
        assert!(other.remove_folder().is_empty() && folder.exists());
    }
    // The launcher may be killed before it has seen the folder.
    SessionRecord { identity: None, ..another() }.remove_folder();
    assert!(!folder.exists());
    std::os::unix::fs::symlink(&other_folder, &folder).unwrap();
    assert!(left.remove_folder().is_empty() && other_folder.exists());
}

#[test]
fn files_of_other_hosts_and_programs_stay() {
    let temporary = tempfile::tempdir().unwrap();
    let (folder, session) = recorded(temporary.path());
    let elsewhere = SessionRecord { host: "elsewhere".to_owned(), ..SessionRecord::read(&session.record).unwrap() };
    std::fs::write(&session.record, serde_json::to_vec(&elsewhere).unwrap()).unwrap();
    remove_leftovers(&session.record);
    assert!(folder.exists() && session.record.exists());
    // Process 1 is always alive.
    let alive = SessionRecord { host: host(), mpirun: 1, ..elsewhere };
    std::fs::write(&session.record, serde_json::to_vec(&alive).unwrap()).unwrap();
    remove_leftovers(&session.record);
    assert!(folder.exists() && session.record.exists());
    let dead = SessionRecord { mpirun: u32::MAX, job: None, ..alive };
    std::fs::write(&session.record, serde_json::to_vec(&dead).unwrap()).unwrap();
    remove_leftovers(&session.record);
    assert!(!folder.exists() && !session.record.exists());
    // A file of another program with the name of the record.
    std::fs::write(&session.record, "{}").unwrap();
    std::fs::create_dir_all(&folder).unwrap();
    session.save(temporary.path());
    remove_leftovers(&session.record);
    SessionRecord::delete(&session.record);
    assert_eq!(std::fs::read_to_string(&session.record).unwrap(), "{}");
}
