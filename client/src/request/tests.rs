use super::*;

/// Readable and whole length of every request, as the specifications' tables have them.
#[test]
fn lengths_are_those_of_the_tables() {
    let bind = BindTable {
        domain: 1,
        format: TableFormat::VtdFirst { five_levels: false },
        root: 0x1000,
        output: Output::GuestPhysical,
    };
    let invalidate = Invalidate { domain: 1, scope: Scope::Domain, leaf: false };
    let requests = [
        (Request::Attach { domain: 1, endpoint: 8, flags: 0 }, 20, 24),
        (Request::Detach { domain: 1, endpoint: 8 }, 20, 24),
        (Request::Map { domain: 1, iovas: 0..=0xfff, to: 0, flags: 3 }, 36, 40),
        (Request::Unmap { domain: 1, iovas: 0..=0xfff }, 28, 32),
        (Request::Probe { endpoint: 8, room: 512 }, 72, 588),
        (Request::AuxEnable { endpoint: 8 }, 16, 20),
        (Request::AuxDisable { endpoint: 8 }, 16, 20),
        (Request::AuxAttach { domain: 1, endpoint: 8, pasid: 5, flags: 0 }, 24, 36),
        (Request::AuxDetach { domain: 1, endpoint: 8, pasid: 5 }, 24, 28),
        (Request::GetAttr { domain: 1, endpoint: 8, attribute: 3 }, 24, 36),
        (Request::BindTable(bind), 64, 68),
        (Request::UnbindTable { domain: 1 }, 16, 20),
        (Request::Invalidate(invalidate), 48, 52),
    ];
    for (request, readable, total) in requests {
        let bytes = request.encode().len();
        let name = request.name();
        assert_eq!((bytes, bytes + request.answer_bytes()), (readable, total), "{name}");
    }
}

#[test]
fn fields_lie_where_the_tables_have_them() {
    let attach = Request::AuxAttach { domain: 0x11, endpoint: 0x22, pasid: 0x33, flags: 1 };
    let words = [0x42u32, 0x11, 0x22, 0x33, 1, 0];
    assert_eq!(attach.encode(), words.map(u32::to_le_bytes).concat());

    let get = Request::GetAttr { domain: 1, endpoint: 2, attribute: Attribute::Nested as u16 };
    assert_eq!(get.encode(), [0x44u32, 1, 2, 5, 0, 0].map(u32::to_le_bytes).concat());

    let format = TableFormat::ArmStage1 { tcr: 0x77, mair: 0x88 };
    let bind = BindTable { domain: 1, format, root: 0x9_0000, output: Output::Through(5) };
    let words = [0x45u32, 1, 2, 2, 0x9_0000, 0, 0x77, 0, 0x88, 0, 5, 0, 0, 0, 0, 0];
    assert_eq!(Request::BindTable(bind).encode(), words.map(u32::to_le_bytes).concat());

    let scope = Scope::Range(0x1000..=0x2fff);
    let invalidate = Request::Invalidate(Invalidate { domain: 9, scope, leaf: true });
    let words = [0x47u32, 0x1_0002, 9, 0, 0x1000, 0, 0x2fff, 0, 0, 0, 0, 0];
    assert_eq!(invalidate.encode(), words.map(u32::to_le_bytes).concat());
    let scope = Scope::Pasid(7);
    let invalidate = Request::Invalidate(Invalidate { domain: 9, scope, leaf: false });
    let words = [0x47u32, 0x2_0001, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(invalidate.encode(), words.map(u32::to_le_bytes).concat());
}

#[test]
fn an_answer_is_a_body_and_a_tail_whose_reserved_bytes_are_zero() {
    let answer = Answer::new(vec![5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0]).unwrap();
    assert_eq!((answer.status(), answer.value()), (Status::NOENT, 5));
    let alone = Answer::new(vec![0; 4]).unwrap();
    assert_eq!((alone.status(), alone.body()), (Status::OK, &[][..]));
    assert_eq!(Answer::new(vec![0; 3]), None);
    assert_eq!(Answer::new(vec![0, 1, 0, 0]), None);
}
