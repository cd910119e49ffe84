//! Options, one claim a test.

use viommu_backend::vfio::PciAddress;

use super::*;
use crate::iommu::X86_MSI_WINDOW;

fn id(raw: u32) -> EndpointId {
    EndpointId::new(raw)
}

fn parsed(specs: &[&str]) -> Result<Vec<EndpointConfig>, ConfigError> {
    let options: Vec<_> = specs.iter().map(|spec| EndpointOption::parse(spec).unwrap()).collect();
    endpoints(&options, X86_MSI_WINDOW.range)
}

fn endpoint(raw: u32, socket: Option<&str>) -> EndpointConfig {
    EndpointConfig {
        spec: EndpointSpec::x86(id(raw)),
        pasid_bits: 0,
        socket: socket.map(PathBuf::from),
        vfio: None,
    }
}

fn refused(spec: &str) -> String {
    EndpointOption::parse(spec).unwrap_err().to_string()
}

#[test]
fn a_function_is_its_segment_bus_device_and_function() {
    for (text, raw) in [
        ("00:02.0", 0x10),
        ("0:2.0", 0x10),
        ("ff:1f.7", 0xffff),
        ("0001:00:02.3", 0x1_0013),
        ("FFFF:ff:1F.7", 0xffff_ffff),
    ] {
        assert_eq!(function(text), Ok(id(raw)), "{text}");
    }
}

#[test]
fn a_text_that_names_no_function_is_refused() {
    for text in [
        "",
        "00",
        "00:02",
        "02.0",
        "00:20.0",
        "00:02.8",
        "100:02.0",
        "00:02.00",
        "00:002.0",
        "0:0:0:02.0",
        "10000:00:02.0",
        "00:02.0.0",
        "g0:02.0",
        "+0:02.0",
        " 00:02.0",
        ":02.0",
        "00:.0",
        "00:02.",
    ] {
        assert_eq!(function(text), Err(FunctionError::Function(text.to_owned())));
    }
}

#[test]
fn a_range_includes_both_ends_and_stays_on_its_segment_unless_told() {
    let range = |first, last| Ok(FunctionRange::new(id(first), id(last)).unwrap());
    assert_eq!(FunctionRange::parse("00:02.0"), range(0x10, 0x10));
    assert_eq!(FunctionRange::parse("00:02.0-00:04.7"), range(0x10, 0x27));
    assert_eq!(FunctionRange::parse("0001:00:02.0-00:04.7"), range(0x1_0010, 0x1_0027));
    assert_eq!(FunctionRange::parse("ff:1f.7-0001:00:00.0"), range(0xffff, 0x1_0000));
    let reversed = "00:04.7-00:02.0";
    assert_eq!(FunctionRange::parse(reversed), Err(FunctionError::Reversed(reversed.to_owned())));
}

#[test]
fn endpoints_come_in_the_order_of_their_ids_with_their_sockets() {
    let named = parsed(&["00:03.0,socket=/run/b", "00:02.0,socket=/run/a,pasid-bits=0", "00:01.0"]);
    let expected =
        [endpoint(0x8, None), endpoint(0x10, Some("/run/a")), endpoint(0x18, Some("/run/b"))];
    assert_eq!(named, Ok(expected.to_vec()));
}

#[test]
fn the_sockets_of_a_range_lie_in_a_folder_under_the_names_of_its_functions() {
    let expected =
        [endpoint(0x10, Some("/run/d/0000:00:02.0")), endpoint(0x11, Some("/run/d/0000:00:02.1"))];
    assert_eq!(parsed(&["00:02.0-00:02.1,socket=/run/d"]), Ok(expected.to_vec()));
    let one = [endpoint(0x10, Some("/run/d/0000:00:02.0"))];
    assert_eq!(parsed(&["00:02.0-00:02.0,socket=/run/d"]), Ok(one.to_vec()), "a range of one");
}

#[test]
fn endpoints_that_clash_are_refused() {
    assert_eq!(parsed(&[]), Err(ConfigError::NoEndpoint));
    assert_eq!(parsed(&["00:02.0-00:04.7", "00:03.0"]), Err(ConfigError::EndpointTwice(id(0x18))));
    let twice = parsed(&["00:02.0,socket=/a", "00:03.0,socket=/a"]);
    assert_eq!(twice, Err(ConfigError::SocketTwice(PathBuf::from("/a"))));
}

#[test]
fn a_whole_segment_is_served_and_one_endpoint_more_is_not() {
    assert_eq!(parsed(&["00:00.0-ff:1f.7"]).map(|all| all.len()), Ok(MAX_ENDPOINTS));
    let more = parsed(&["00:00.0-ff:1f.7", "0001:00:00.0"]);
    assert_eq!(more, Err(ConfigError::TooManyEndpoints));
    let all = parsed(&["0000:00:00.0-ffff:ff:1f.7", "0000:00:00.0-ffff:ff:1f.7"]);
    assert_eq!(all, Err(ConfigError::TooManyEndpoints), "counted, not listed");
}

#[test]
fn what_this_build_does_not_serve_is_refused_by_name() {
    assert_eq!(EndpointOption::parse("00:02.0,page-request"), Err(SpecError::PageRequests));
    assert_eq!(width(Arch::SmmuV3, 57), Err(ConfigError::SmmuInputBits(57)));
    assert_eq!(width(Arch::SmmuV3, 48).and(width(Arch::Vtd, 57)), Ok(()));
}

#[test]
fn pasids_have_1_to_20_bits_or_are_not_there() {
    let bits = |spec: &str| parsed(&[spec]).map(|all| all[0].pasid_bits);
    assert_eq!(bits("00:02.0"), Ok(0));
    for width in 0..=20 {
        assert_eq!(bits(&format!("00:02.0,pasid-bits={width}")), Ok(width));
    }
    let range = parsed(&["00:02.0-00:02.1,pasid-bits=8"]).unwrap();
    assert_eq!(range.iter().map(|endpoint| endpoint.pasid_bits).collect::<Vec<_>>(), [8, 8]);
    for wrong in ["21", "256", "-1", "0x10", "a", ""] {
        let refused = Err(SpecError::PasidBits(wrong.to_owned()));
        assert_eq!(EndpointOption::parse(&format!("00:02.0,pasid-bits={wrong}")), refused);
    }
    assert_eq!(
        refused("00:02.0,pasid-bits=21"),
        "pasid-bits=21: a PASID has 1 to 20 bits; 0 means that there are none"
    );
}

#[test]
fn a_spec_with_a_part_that_means_nothing_is_refused() {
    for (spec, part) in [("00:02.0,sokcet=/a", "sokcet=/a"), ("00:02.0,", ""), ("00:02.0,a", "a")] {
        assert_eq!(EndpointOption::parse(spec), Err(SpecError::Unknown(part.to_owned())));
    }
    assert_eq!(EndpointOption::parse("00:02.0,socket="), Err(SpecError::NoPath));
    assert_eq!(EndpointOption::parse("00:02.0,socket"), Err(SpecError::NoPath));
    let twice = "00:02.0,socket=/a,socket=/b";
    assert_eq!(EndpointOption::parse(twice), Err(SpecError::Twice("socket")));
    let zero_twice = "00:02.0,pasid-bits=0,pasid-bits=0";
    assert_eq!(EndpointOption::parse(zero_twice), Err(SpecError::Twice("pasid-bits")));
}

#[test]
fn numbers_have_units_of_1024_and_may_be_hexadecimal() {
    let cases = [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("4K", 4096),
        ("2m", 1 << 21),
        ("1G", 1 << 30),
        ("0x10k", 1 << 14),
        ("0xffffffffffffffff", u64::MAX),
    ];
    for (text, value) in cases {
        assert_eq!(bytes(text), Ok(value), "{text}");
    }
}

#[test]
fn what_is_no_number_is_refused_never_cut() {
    for text in ["", "K", "0x", "-1", "+1", "1_000", "1.5G", "4KB", "0x1g2", "18446744073709551616"]
    {
        assert_eq!(bytes(text), Err(NumberError::Number(text.to_owned())));
    }
    let too_much = "17179869184G";
    assert_eq!(bytes(too_much), Err(NumberError::Number(too_much.to_owned())));
}

#[test]
fn page_sizes_are_sizes_or_one_mask() {
    let all = 0x4020_1000;
    for text in ["4K+2M+1G", "1G+4096+0x200000", "0x40201000"] {
        assert_eq!(page_sizes(text), Ok(all), "{text}");
    }
    assert_eq!(page_sizes("64K"), Ok(1 << 16));
    assert_eq!(page_sizes("5K"), Err(NumberError::PageSize("5K".to_owned())));
    assert_eq!(page_sizes("4K+0x3000"), Err(NumberError::PageSize("0x3000".to_owned())));
    assert_eq!(page_sizes("4K+"), Err(NumberError::Number(String::new())));
    assert_eq!(page_sizes("0"), Err(NumberError::NoPageSize));
}

#[test]
fn polling_is_auto_or_microseconds() {
    assert_eq!(polling("auto"), Ok(Polling::Adaptive));
    assert_eq!(polling("0"), Ok(Polling::Fixed(Duration::ZERO)));
    assert_eq!(polling("1000000"), Ok(Polling::Fixed(Duration::from_secs(1))));
    for text in ["", "-1", "1000001", "Auto", "5us"] {
        assert_eq!(polling(text), Err(NumberError::Polling(text.to_owned())));
    }
}

#[test]
fn the_input_range_is_as_wide_as_the_tables_or_the_window() {
    let range = |start, last| IovaRange::new(Iova::new(start), Iova::new(last)).unwrap();
    for bits in INPUT_BITS {
        assert_eq!(input(bits, None, 0x1000), Ok(range(0, (1 << bits) - 1)));
    }
    for bits in [0, 38, 40, 64, 255] {
        assert_eq!(input(bits, None, 0x1000), Err(ConfigError::InputBits(bits)));
    }
    let inside = window("0x1000000-0x3effffff").unwrap();
    assert_eq!(input(48, Some(inside), 0x1000), Ok(range(0x100_0000, 0x3eff_ffff)));
}

#[test]
fn a_window_that_cannot_be_mapped_is_refused() {
    let high = window("0x1000000-0x8000000fff").unwrap();
    let error = input(39, Some(high), 0x1000).unwrap_err();
    assert!(matches!(error, ConfigError::WindowOutside { window, .. } if window == high));
    for ragged in ["0x1000001-0x3effffff", "0x1000000-0x3f000000"] {
        let window = window(ragged).unwrap();
        let error = ConfigError::WindowUnaligned { window, granule: 0x1000 };
        assert_eq!(input(48, Some(window), 0x1000), Err(error));
    }
    assert_eq!(window("5"), Err(NumberError::Window("5".to_owned())));
    assert_eq!(window("2-1"), Err(NumberError::Reversed("2-1".to_owned())));
}

#[test]
fn exactly_one_socket_is_taken() {
    let path = || Some(PathBuf::from("/run/s"));
    assert_eq!(socket(path(), None), Ok(Socket::Path(PathBuf::from("/run/s"))));
    assert_eq!(socket(None, Some(3)), Ok(Socket::Fd(3)));
    assert_eq!(socket(None, None), Err(ConfigError::NoSocket));
    assert_eq!(socket(path(), Some(3)), Err(ConfigError::TwoSockets));
    assert_eq!(socket(None, Some(-1)), Err(ConfigError::Fd(-1)));
}

#[test]
fn table_memory_is_whole_pages() {
    assert_eq!(table_bytes(1 << 30), Ok(1 << 30));
    assert_eq!(table_bytes(512 << 10), Ok(512 << 10));
    for bytes in [0, 1, 4096, (512 << 10) - 4096, (512 << 10) + 1] {
        assert_eq!(table_bytes(bytes), Err(ConfigError::TableMemory(bytes)));
    }
}

fn device(spec: &str) -> Result<Option<VfioDevice>, SpecError> {
    let option = EndpointOption::parse(spec)?;
    Ok(option.endpoints(X86_MSI_WINDOW.range).next().unwrap().vfio)
}

#[test]
fn a_vfio_device_is_an_address_or_two_descriptors() {
    let address = PciAddress::new(EndpointId::new(0x1_6500));
    assert_eq!(device("00:04.0,vfio=0001:65:00.0"), Ok(Some(VfioDevice::Address(address))));
    let given = VfioDevice::Given { device: 31, iommufd: 30 };
    assert_eq!(device("00:04.0,vfio=fd:31,iommufd=fd:30"), Ok(Some(given)));
    assert_eq!(device("00:04.0"), Ok(None));
}

#[test]
fn a_vfio_device_that_is_half_named_or_shared_is_refused() {
    for (spec, error) in [
        ("00:04.0,vfio=65", SpecError::Vfio("65".to_owned())),
        ("00:04.0,vfio=0000:65:00.0,pasid-bits=8", SpecError::VfioPasids),
        ("00:04.0,vfio=fd:31", SpecError::Vfio("fd:31".to_owned())),
        ("00:04.0,vfio=fd:-1,iommufd=fd:30", SpecError::Vfio("fd:-1".to_owned())),
        ("00:04.0,vfio=01:00.0,iommufd=fd:3", SpecError::IommufdAlone),
        ("00:04.0,iommufd=fd:3", SpecError::IommufdAlone),
        ("00:04.0-00:04.1,vfio=01:00.0", SpecError::VfioShared),
        ("00:04.0,vfio=01:00.0,socket=/s", SpecError::VfioShared),
        ("00:04.0,vfio=01:00.0,vfio=01:00.1", SpecError::Twice("vfio")),
    ] {
        assert_eq!(device(spec), Err(error), "{spec}");
    }
}

#[test]
fn devices_of_a_vmm_need_someone_who_says_when_it_has_them() {
    let given = parsed(&["00:04.0,vfio=fd:31,iommufd=fd:30"]).unwrap();
    let ours = parsed(&["00:04.0,vfio=01:00.0"]).unwrap();
    let none = VfioOptions::default();
    let told = VfioOptions { control: Some(9), ..none };
    let keep = VfioOptions { on_start: OnStart::Keep, ..none };
    let type1 = VfioOptions { interface: HostInterface::Type1, ..told };
    assert_eq!(vfio(&given, told), Ok(told));
    assert_eq!(vfio(&given, keep), Ok(keep));
    assert_eq!(vfio(&ours, none), Ok(none));
    assert_eq!(vfio(&given, none), Err(ConfigError::NoControl));
    assert_eq!(vfio(&given, type1), Err(ConfigError::GivenToType1));
    assert_eq!(vfio(&ours, told), Err(ConfigError::ControlAlone));
    assert_eq!(vfio(&ours, keep), Err(ConfigError::ControlAlone));
    let both = parsed(&["00:04.0,vfio=01:00.0", "00:05.0,vfio=fd:3,iommufd=fd:4"]).unwrap();
    assert_eq!(vfio(&both, told), Err(ConfigError::TwoKinds));
}
