//! Replays every input of the fuzzing corpus once, without a fuzzer, as a regression test.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use targets::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_input_of_the_corpus_passes() {
    for (name, run) in TARGETS {
        let folder = corpus().join(name);
        for input in names(&folder) {
            // The test harness shows this only if the input fails.
            println!("{name}: {input}");
            run(&fs::read(folder.join(input)).unwrap());
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_accepts_the_empty_input() {
    assert_eq!(names(&corpus()), TARGETS.map(|(name, _)| name));
    for (name, run) in TARGETS {
        assert!(!names(&corpus().join(name)).is_empty(), "{name} has no corpus");
        run(&[]);
    }
}
