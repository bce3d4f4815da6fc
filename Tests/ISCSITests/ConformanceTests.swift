import BlockIO
import Testing

/// libiscsi's conformance suite, whole. docs/scsi.md says why a test in it is skipped.
@Suite("libiscsi's conformance suite", .serialized)
struct ConformanceTests {
    static let isInstalled = Program.isInstalled("iscsi-test-cu")

    /// Every family of libiscsi 1.19, in its own order; MultipathIO is with the two paths below.
    static let families = [
        "CompareAndWrite", "ExtendedCopy", "GetLBAStatus", "Inquiry", "Mandatory", "ModeSense6", "NoMedia", "OrWrite",
        "Prefetch10", "Prefetch16", "PreventAllow", "PrinReadKeys", "PrinServiceactionRange", "PrinReportCapabilities",
        "ProutRegister", "ProutReserve", "ProutClear", "ProutPreempt", "Read6", "Read10", "Read12", "Read16",
        "ReadCapacity10", "ReadCapacity16", "ReadDefectData10", "ReadDefectData12", "ReadOnly", "ReceiveCopyResults",
        "ReportSupportedOpcodes", "Reserve6", "Sanitize", "StartStopUnit", "TestUnitReady", "Unmap", "Verify10",
        "Verify12", "Verify16", "Write10", "Write12", "Write16", "WriteAtomic16", "WriteSame10", "WriteSame16",
        "WriteVerify10", "WriteVerify12", "WriteVerify16", "iSCSIcmdsn", "iSCSIdatasn", "iSCSIResiduals", "iSCSITMF",
    ]

    @Test("every test of the family passes, or is skipped for a reason", .enabled(if: isInstalled), arguments: families)
    func family(_ family: String) async throws {
        // GetLBAStatus.UnmapSingle asks for more than SBC-3 on units of 8 logical blocks a physical one: docs/scsi.md.
        let physical = family == "GetLBAStatus" ? 512 : 4096
        let running = try await RunningServer(geometry: BlockGeometry(physicalBlockBytes: physical))
        let url = "iscsi://127.0.0.1:\(running.port)/\(RunningServer.open)/0"
        let result = Program.run(
            ["iscsi-test-cu", "--dataloss", "--allow-sanitize", "--fail", "-n", "-t", "ALL.\(family)", url],
            timeoutSeconds: 400)
        #expect(result.status == 0, "\(result.output.suffix(4000))")
        try await running.stop()
    }
}
