//! What is acknowledged survives, and nothing is half there: the storage in a process of its own, under faults of the
//! disk and after power cuts.

mod faulted;
mod images;
mod model;
mod processes;
mod reader;
mod script;
mod writer;

use faulted::{FAULTS, Plan, STEPS};
use images::Run;

fn long() -> bool {
    std::env::var_os("KEYSTEAD_TESTS_LONG").is_some()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Not a test: the other tests start this program again for the sake of it.
#[test]
#[ignore = "the other tests run it in processes of their own"]
fn a_process_with_a_role() {
    processes::play();
}

#[test]
fn a_fault_at_any_point_of_any_operation_stops_the_storage_and_loses_nothing() {
    if let Some(text) = variable("SURVIVAL_PLAN") {
        eprintln!("the fault struck: {}", Plan::parse(&text).run().expect("survives"));
        return;
    }
    let mut bad = Vec::new();
    let mut struck = 0;
    for (step, fault) in STEPS.iter().flat_map(|step| FAULTS.map(|fault| (*step, fault))) {
        // The end of an install is where two trees are on the disk and one counts.
        let points = if long() || (step, fault) == ("install", "failed-sync") { 25 } else { 2 };
        for nth in 0..points {
            let plan = Plan { step: step.into(), fault: fault.into(), nth, healed: nth % 2 == 1 };
            match plan.run() {
                Ok(true) => struck += 1,
                Ok(false) => break,
                Err(why) => {
                    bad.push(format!("{}: {why}", plan.text()));
                    break;
                }
            }
        }
    }
    eprintln!("{struck} faults");
    assert!(bad.is_empty(), "{} of {struck}:\n{}", bad.len(), bad.join("\n"));
    assert!(struck > 40, "only {struck} faults struck");
}

#[test]
fn after_a_power_cut_at_any_point_everything_acknowledged_is_there_and_nothing_half() {
    let (runs, images) = if long() { (20, 250) } else { (2, 150) };
    let seed = variable("SURVIVAL_SEED").map(|seed| seed.parse().expect("a number"));
    let seeds = seed.map_or(1..=runs, |seed| seed..=seed);
    let (mut opened, mut unsafe_images, mut bad) = (0, 0, Vec::new());
    for seed in seeds {
        let findings = Run::new(seed).expect("a writer").images(images, None, usize::MAX).expect("images");
        opened += findings.images;
        unsafe_images += findings.unsafe_images;
        bad.extend(findings.bad);
    }
    eprintln!("{opened} images, {unsafe_images} of them with something to lose");
    assert!(bad.is_empty(), "{} of {opened} images:\n{}", bad.len(), bad.join("\n"));
    assert!(unsafe_images > opened / 3, "only {unsafe_images} of {opened} had anything to lose");
}

#[test]
fn a_disk_that_only_says_that_it_syncs_is_found_out() {
    let run = Run::new(1).expect("a writer");
    for files in ["/data/log/", "/data/state/"] {
        let findings = run.images(100, Some(files), 1).expect("images");
        assert!(!findings.bad.is_empty(), "{} images without a sync of {files} were good", findings.images);
    }
}
