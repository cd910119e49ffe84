//! Command lines, one claim a test.

use std::time::Duration;

use viommu_pgtable::{Iova, IovaRange};

use super::*;
use crate::config::{Arch, EndpointConfig, Sandbox, Socket, StuckDevice, VfioOptions};
use crate::device::Polling;
use crate::iommu::{EndpointSpec, Settings};

fn invocation(line: &str) -> Result<Invocation, clap::Error> {
    parse(std::iter::once("vhost-user-iommu").chain(line.split_whitespace()))
}

fn serve(line: &str) -> Config {
    match invocation(line).unwrap() {
        Invocation::Serve(config) => *config,
        other => panic!("{other:?}"),
    }
}

/// The text of a refusal, which has to end the program with 2.
fn refused(line: &str) -> String {
    let error = invocation(line).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{line}");
    error.to_string()
}

#[test]
fn the_definition_of_the_options_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_least_command_line_has_the_documented_defaults() {
    let id = EndpointId::new(0x10);
    let expected = Config {
        socket: Socket::Path("/run/s".into()),
        endpoints: vec![EndpointConfig {
            spec: EndpointSpec::x86(id),
            pasid_bits: 0,
            socket: None,
            vfio: None,
        }],
        arch: Arch::Vtd,
        vfio: VfioOptions::default(),
        mmio: Vec::new(),
        settings: Settings::default(),
        table_bytes: 1 << 30,
        polling: Polling::Adaptive,
        stuck_after: Duration::from_secs(1),
        stuck_device: StuckDevice::Kill,
        sandbox: Sandbox::Auto,
        log_level: log::LevelFilter::Info,
    };
    assert_eq!(serve("--socket-path /run/s --endpoint 00:02.0"), expected);
}

#[test]
fn every_option_reaches_the_configuration() {
    let config = serve(
        "--fd 5 --endpoint 00:02.0,socket=/d --endpoint=00:03.0 --arch vtd --input-bits 39 \
         --page-sizes 64K+2M --iova-window 16M-0x3effffff --msi-window 0x8080000-0x809ffff \
         --boot-bypass off --max-domains 7 \
         --max-mappings 9 --table-memory 64M --poll-us 50 --stuck-ms 20 --stuck-device disconnect \
         --sandbox none --log-level trace",
    );
    let its = IovaRange::new(Iova::new(0x808_0000), Iova::new(0x809_ffff)).unwrap();
    let endpoint = |raw, socket: Option<&str>| EndpointConfig {
        pasid_bits: 0,
        spec: EndpointSpec::with_msi_window(EndpointId::new(raw), its),
        socket: socket.map(PathBuf::from),
        vfio: None,
    };
    let settings = Settings {
        page_size_mask: 1 << 16 | 1 << 21,
        input: IovaRange::new(Iova::new(1 << 24), Iova::new(0x3eff_ffff)).unwrap(),
        max_domains: 7,
        max_mappings: 9,
        boot_bypass: false,
        ..Settings::default()
    };
    let expected = Config {
        socket: Socket::Fd(5),
        endpoints: vec![endpoint(0x10, Some("/d")), endpoint(0x18, None)],
        arch: Arch::Vtd,
        vfio: VfioOptions::default(),
        mmio: Vec::new(),
        settings,
        table_bytes: 64 << 20,
        polling: Polling::Fixed(Duration::from_micros(50)),
        stuck_after: Duration::from_millis(20),
        stuck_device: StuckDevice::Disconnect,
        sandbox: Sandbox::None,
        log_level: log::LevelFilter::Trace,
    };
    assert_eq!(config, expected);
}

#[test]
fn a_wrong_command_line_says_what_would_be_right() {
    let cases = [
        ("--endpoint 00:02.0", "--socket-path PATH or --fd N"),
        ("--socket-path /s --fd 3 --endpoint 00:02.0", "exclude each other"),
        ("--socket-path /s", "an endpoint is needed"),
        ("--socket-path /s --endpoint 00:02", "write [SSSS:]BB:DD.F"),
        ("--socket-path /s --endpoint 00:02.0,pasid-bits=21", "1 to 20 bits"),
        ("--socket-path /s --endpoint 00:02.0 --arch riscv", "vtd, smmuv3"),
        ("--socket-path /s --endpoint 00:02.0 --arch smmuv3 --input-bits 57", "39 or 48"),
        ("--socket-path /s --endpoint 00:02.0 --input-bits 40", "39, 48 or 57"),
        ("--socket-path /s --endpoint 00:02.0 --page-sizes 5K", "power of two"),
        ("--socket-path /s --endpoint 00:02.0 --table-memory 1T", "4096, 0x1000, 4K, 2M or 1G"),
        ("--socket-path /s --endpoint 00:02.0 --boot-bypass maybe", "on, off"),
        ("--socket-path /s --endpoint 00:02.0 --poll-us 1000001", "write auto, 0 to sleep at once"),
        ("--socket-path /s --endpoint 00:02.0 --max-domains 0", "1.."),
        ("--socket-path /s --endpoint 00:02.0 --stuck-ms 0", "1..=60000"),
        ("--socket-path /s --endpoint 00:02.0 --stuck-device wait", "kill, disconnect"),
        ("--socket-path /s --endpoint 00:02.0 --log-level loud", "error, warn, info"),
        ("--socket-path /s --endpoint 00:02.0 --sandbox full", "auto, none"),
        ("launch", "--vfio <DEVICE>"),
        ("viot --iommu 00:01.0 --output f", "--endpoint"),
        ("viot --iommu 00:01.0-00:02.0 --endpoint 00:02.0 --output f", "write [SSSS:]BB:DD.F"),
    ];
    for (line, advice) in cases {
        let message = refused(line);
        assert!(message.contains(advice), "{line}: {message}");
    }
}

#[test]
fn viot_takes_the_iommu_its_ranges_and_a_file() {
    let range =
        |first, last| FunctionRange::new(EndpointId::new(first), EndpointId::new(last)).unwrap();
    let expected = ViotRequest {
        iommu: EndpointId::new(0x8),
        endpoints: vec![range(0x10, 0x27), range(0x1_0000, 0x1_0000)],
        output: PathBuf::from("viot.bin"),
    };
    let line =
        "viot --iommu 00:01.0 --endpoint 00:02.0-00:04.7 --endpoint 1:00:00.0 --output viot.bin";
    assert_eq!(invocation(line).unwrap(), Invocation::Viot(expected));
}

#[test]
fn print_capabilities_ignores_all_else() {
    for line in [
        "--print-capabilities",
        "--nonsense --print-capabilities --fd x",
        "viot --print-capabilities",
    ] {
        assert_eq!(invocation(line).unwrap(), Invocation::PrintCapabilities, "{line}");
    }
    let json: serde_json::Value = serde_json::from_str(&capabilities()).unwrap();
    assert_eq!(json, serde_json::json!({ "type": "iommu", "features": [] }));
}

#[test]
fn help_tells_each_option_and_ends_with_0() {
    let error = invocation("--help").unwrap_err();
    assert_eq!(error.exit_code(), 0);
    let help = error.to_string();
    for option in [
        "--socket-path",
        "--fd",
        "--endpoint",
        "--arch",
        "--input-bits",
        "--page-sizes",
        "--iova-window",
        "--boot-bypass",
        "--max-domains",
        "--max-mappings",
        "--table-memory",
        "--poll-us",
        "--stuck-ms",
        "--stuck-device",
        "--log-level",
        "--print-capabilities",
        "viot",
    ] {
        assert!(help.contains(option), "{option}");
    }
}

fn launch(line: &str) -> Result<Launch, clap::Error> {
    match invocation(line)? {
        Invocation::Launch(launch) => Ok(launch),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_launch_places_devices_one_after_another_unless_told_where() {
    use crate::launch::Assigned;
    use viommu_backend::vfio::PciAddress;
    let device = |host, guest| Assigned {
        host: PciAddress::new(EndpointId::new(host)),
        guest: EndpointId::new(guest),
    };
    let expected = Launch {
        devices: vec![device(0x6500, 0x20), device(0x1_6601, 0x3a)],
        others: Vec::new(),
        iommu: EndpointId::new(8),
        viot: false,
        log_level: log::LevelFilter::Info,
        options: Vec::new(),
        qemu: ["qemu", "-M", "q35"].map(OsString::from).to_vec(),
    };
    let line = "launch --vfio 65:00.0 --vfio 0001:66:00.1,at=07.2 --viot off -- qemu -M q35";
    assert_eq!(launch(line).unwrap(), expected);
}

#[test]
fn a_launch_passes_the_daemons_options_on_as_they_were_written() {
    let line = "launch --vfio 65:00.0 --pin dynamic --on-start=block --boot-bypass off \
                --endpoint 00:10.0-00:11.7,socket=/d --endpoint 00:12.0 --stuck-ms 20 \
                --log-level debug -- qemu --pin static";
    let range =
        |first, last| FunctionRange::new(EndpointId::new(first), EndpointId::new(last)).unwrap();
    let launch = launch(line).unwrap();
    assert_eq!(launch.others, [range(0x80, 0x8f), range(0x90, 0x90)]);
    assert_eq!(launch.log_level, log::LevelFilter::Debug);
    let mut options = launch.options;
    options.sort();
    let expected = [
        "--boot-bypass=off",
        "--endpoint=00:10.0-00:11.7,socket=/d",
        "--endpoint=00:12.0",
        "--log-level=debug",
        "--on-start=block",
        "--pin=dynamic",
        "--stuck-ms=20",
    ];
    assert_eq!(options, expected);
}

#[test]
fn a_launch_refuses_what_the_daemon_would_refuse_and_what_only_a_daemon_takes() {
    let cases = [
        ("--input-bits 40", "39, 48 or 57"),
        ("--table-memory 5000", "a multiple of 4096"),
        ("--endpoint 00:04.0,socket=/d", "named twice"),
        ("--endpoint 00:01.0,socket=/d", "the IOMMU, is there already"),
        ("--endpoint 00:10.0,vfio=0000:66:00.0", "--vfio DEVICE"),
        ("--on-start keep", "write boot or block"),
        ("--socket-path /s", "unexpected argument"),
        ("--host-iommu type1", "unexpected argument"),
        ("--vfio-control 3", "unexpected argument"),
    ];
    for (options, advice) in cases {
        let line = format!("launch --vfio 65:00.0 {options} -- qemu");
        let message = refused(&line);
        assert!(message.contains(advice), "{line}: {message}");
    }
}

#[test]
fn the_help_of_launch_tells_the_daemons_options() {
    let help = invocation("launch --help").unwrap_err().to_string();
    for option in ["--vfio", "--iommu", "--viot", "--pin", "--on-start", "--boot-bypass", "QEMU"] {
        assert!(help.contains(option), "{option}");
    }
    assert!(!help.contains("--socket-path"), "{help}");
}

#[test]
fn a_launch_with_two_devices_at_one_place_is_refused() {
    for devices in [
        "--vfio 65:00.0,at=04.0 --vfio 66:00.0,at=04.0",
        "--vfio 65:00.0 --vfio 65:00.0",
        "--vfio 65:00.0,at=01.0",
        "--vfio 65:00.0,at=02:01.0",
        "--vfio nothing",
    ] {
        let error = launch(&format!("launch {devices} -- qemu")).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{devices}");
    }
    assert_eq!(launch("launch --vfio 65:00.0").unwrap_err().exit_code(), 2, "no QEMU");
}
