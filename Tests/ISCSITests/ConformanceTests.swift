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
        // GetLBAStatus.UnmapSingle is wrong about units of 8 logical blocks a physical one: docs/scsi.md, and below.
        let physical = family == "GetLBAStatus" ? 512 : 4096
        let running = try await RunningServer(geometry: BlockGeometry(physicalBlockBytes: physical))
        let url = "iscsi://127.0.0.1:\(running.port)/\(RunningServer.open)/0"
        let result = Program.run(
            ["iscsi-test-cu", "--dataloss", "--allow-sanitize", "--fail", "-n", "-t", "ALL.\(family)", url],
            timeoutSeconds: 400)
        #expect(result.status == 0, "\(result.output.suffix(4000))")
        try await running.stop()
    }

    @Test(
        "of GetLBAStatus only UnmapSingle minds 4 KiB physical blocks", .enabled(if: isInstalled),
        arguments: ["Simple", "BeyondEol"])
    func physicalBlocks(_ test: String) async throws {
        let running = try await RunningServer()
        let url = "iscsi://127.0.0.1:\(running.port)/\(RunningServer.open)/0"
        let result = Program.run(
            ["iscsi-test-cu", "--dataloss", "--fail", "-n", "-t", "ALL.GetLBAStatus.\(test)", url],
            timeoutSeconds: 90)
        #expect(result.status == 0, "\(result.output.suffix(4000))")
        try await running.stop()
    }

    @Test("what GetLBAStatus.UnmapSingle is about holds with 4 KiB physical blocks: behind what was unmapped is mapped")
    func unmapSingle() throws {
        let peer = try ScriptedSession()
        /// The LBA of the first descriptor, and whether it is mapped.
        func status(_ lba: Int) -> [Int] {
            let cdb: [UInt8] = [0x9E, 0x12, 0, 0, 0, 0, 0, 0, UInt8(lba >> 8), UInt8(lba & 255), 0, 0, 0, 24, 0, 0]
            let data = peer.exchange(peer.command(cdb, flags: 0xC0, expected: 24))[0].data
            guard data.count == 24 else { return [] }
            return [Int(data[14]) << 8 | Int(data[15]), Int(data[20])]
        }
        for count in stride(from: 8, through: 112, by: 8) {
            let data = [UInt8](repeating: 0x41, count: 120 * 512)
            peer.deliver(peer.command(CDB.write(lba: 0, blocks: 120), flags: 0xA0, expected: data.count, data: data))
            let unmap: [UInt8] =
                [0, 22, 0, 16, 0, 0, 0, 0] + [0, 0, 0, 0, 0, 0, 0, 0] + [0, 0, 0, UInt8(count)] + [0, 0, 0, 0]
            peer.deliver(
                peer.command([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], flags: 0xA0, expected: 24, data: unmap))
            #expect(peer.answers().map(\.status) == [0, 0])
            // Each first descriptor begins where it was asked for (SBC-3 5.8), inside a physical block, too.
            #expect(status(0) == [0, 1])
            #expect(status(count) == [count, 0])
            #expect(status(count + 1) == [count + 1, 0])
        }
    }
}
