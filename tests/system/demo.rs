//! `octavius demo`: the first thing that a new user sees.

use octavius_tests::World;

#[test]
fn the_demo_shows_the_whole_main_job_and_leaves_nothing_behind() {
    let world = World::new().unwrap();
    let output = world.run(&["demo"]).unwrap().expect(0).unwrap();
    let all = format!("{}{}", output.stdout, output.stderr);
    for step in [
        "octavius validate",
        "octavius diff",
        "octavius apply",
        "octavius execute hello-friend",
        "octavius getlogs",
        "octavius status",
    ] {
        assert!(all.contains(&format!("$ {step}")), "no `{step}` in\n{all}");
    }
    assert!(all.contains("succeeded"), "{all}");
    let left: Vec<_> = std::fs::read_dir(world.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "home")
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
