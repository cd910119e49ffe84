//! `--mmio`, one claim a test.

use viommu_pasid::EndpointId;

use super::*;
use crate::config::{EndpointOption, endpoints};
use crate::iommu::X86_MSI_WINDOW;

fn window_of(start: u64, bytes: u64, endpoint: u32) -> BarWindow {
    let gpa = AddrRange::<PhysAddr>::with_len(PhysAddr::new(start), bytes).unwrap();
    BarWindow { gpa, endpoint: EndpointId::new(endpoint), bar: 0, offset: 0 }
}

fn configured(texts: &[&str], specs: &[&str]) -> Result<Vec<BarWindow>, ConfigError> {
    let options: Vec<_> = specs.iter().map(|spec| EndpointOption::parse(spec).unwrap()).collect();
    let endpoints = endpoints(&options, X86_MSI_WINDOW.range).unwrap();
    windows(texts.iter().map(|text| mmio(text).unwrap()).collect(), &endpoints)
}

#[test]
fn a_window_names_addresses_and_a_part_of_a_bar() {
    let least = mmio("0xe0000000-0xe0003fff,endpoint=00:05.0,bar=0");
    assert_eq!(least, Ok(window_of(0xe000_0000, 0x4000, 0x28)));
    let all = mmio("0x800000000-0x800000fff,offset=8K,bar=2,endpoint=0001:00:05.1");
    let expected =
        BarWindow { bar: 2, offset: 0x2000, ..window_of(0x8_0000_0000, 0x1000, 0x1_0029) };
    assert_eq!(all, Ok(expected));
}

#[test]
fn a_text_that_is_no_window_is_refused_with_what_would_be_one() {
    let start = "0xe0000000-0xe0003fff";
    for (text, told) in [
        (String::new(), "is no window"),
        ("0xe0003fff-0xe0000000,endpoint=00:05.0,bar=0".to_owned(), "ends before it starts"),
        (start.to_owned(), "endpoint= and bar= are needed"),
        (format!("{start},endpoint=00:05.0"), "endpoint= and bar= are needed"),
        (format!("{start},endpoint=5,bar=0"), "is no PCI function"),
        (format!("{start},endpoint=00:05.0,bar=6"), "BARs 0 to 5"),
        (format!("{start},endpoint=00:05.0,bar=+1"), "BARs 0 to 5"),
        (format!("{start},endpoint=00:05.0,bar=0,bar=1"), "each key once"),
        (format!("{start},endpoint=00:05.0,bar=0,size=1"), "each key once"),
        (format!("{start},endpoint=00:05.0,bar=0,offset=1"), "whole pages"),
        ("0xe0000000-0xe0003ffe,endpoint=00:05.0,bar=0".to_owned(), "whole pages"),
        ("0x7ffffffff000-0x800000000fff,endpoint=00:05.0,bar=0".to_owned(), "has to end below"),
    ] {
        let error = mmio(&text).unwrap_err().to_string();
        assert!(error.contains(told), "{text}: {error}");
    }
}

#[test]
fn windows_that_share_an_address_are_refused_and_neighbours_are_not() {
    let specs = ["00:05.0,vfio=00:05.0", "00:06.0,vfio=00:06.0"];
    let texts = [
        "0xe0001000-0xe0001fff,endpoint=00:06.0,bar=0",
        "0xe0000000-0xe0000fff,endpoint=00:05.0,bar=0",
    ];
    let expected = vec![window_of(0xe000_0000, 0x1000, 0x28), window_of(0xe000_1000, 0x1000, 0x30)];
    assert_eq!(configured(&texts, &specs), Ok(expected.clone()));
    let over = "0xe0001000-0xe0002fff,endpoint=00:05.0,bar=0";
    let overlap =
        ConfigError::MmioOverlap { one: expected[1], other: window_of(0xe000_1000, 0x2000, 0x28) };
    assert_eq!(configured(&[texts[0], over], &specs), Err(overlap));
}

#[test]
fn a_window_of_a_device_that_is_not_ours_is_refused() {
    let text = "0xe0000000-0xe0000fff,endpoint=00:05.0,bar=0";
    for specs in [["00:04.0"], ["00:05.0"], ["00:05.0,vfio=fd:5,iommufd=fd:6"]] {
        let refused = ConfigError::MmioEndpoint(EndpointId::new(0x28));
        assert_eq!(configured(&[text], &specs), Err(refused), "{specs:?}");
    }
}
