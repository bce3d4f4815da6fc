import BlockIO
import SCSI
import Testing

@testable import ISCSI

@Suite("What sessions, targets and devices count")
struct StatisticsTests {
    @Test("a latency goes into the bucket whose bound it does not exceed, and quantiles are those bounds")
    func buckets() {
        let counters = CommandCounters()
        for nanoseconds in [0, 15_999, 16_000, 31_999, 1_000_000, 20_000_000_000] as [UInt64] {
            counters.ended(.read, nanoseconds: nanoseconds)
        }
        let reads = counters.statistics.reads
        let bounds = LatencyHistogram.upperBoundsSeconds
        #expect(bounds.count + 1 == reads.counts.count && bounds.first == 16e-6)
        #expect(reads.counts[0] == 2 && reads.counts[1] == 2 && reads.counts.last == 1)
        #expect(reads.quantileSeconds(0.5) == 32e-6)
        #expect(reads.quantileSeconds(0.8) == 1024e-6)
        #expect(reads.quantileSeconds(1) == .infinity)
        #expect(LatencyHistogram().quantileSeconds(0.5) == nil)
        #expect(reads.sumNanoseconds == 20_001_063_998)
    }

    @Test("commands, bytes and failures are counted where they end: session, target and device alike")
    func counts() throws {
        let peer = try ScriptedSession()
        let data = [UInt8](repeating: 7, count: 4096)
        _ = peer.exchange(peer.command(CDB.write(lba: 0, blocks: 8), flags: 0xA0, expected: 4096, data: data))
        _ = peer.exchange(peer.command(CDB.write(lba: 8, blocks: 8), flags: 0xA0, expected: 4096))
        #expect(peer.session.counters.statistics.writes.count == 1, "the second waits for its data")
        _ = peer.exchange(peer.command(CDB.read(lba: 0, blocks: 8), flags: 0xC0, expected: 4096))
        _ = peer.exchange(peer.command(CDB.read(lba: 255, blocks: 65535), flags: 0xC0, expected: 4096))
        _ = peer.exchange(peer.command(CDB.testUnitReady, flags: 0x80, lun: 1))
        let session = peer.session.counters.statistics
        #expect(session.commands == 4 && session.failedCommands == 1)
        #expect(session.bytesRead == 4096 && session.bytesWritten == 4096)
        #expect(session.reads.count == 1 && session.writes.count == 1 && session.others.count == 2)
        let devices = peer.registry.deviceStatistics()
        #expect(devices.map(\.statistics.commands) == [3, 1])
        #expect(devices[0].statistics.bytesWritten == 4096)
    }

    @Test("what a device counted outlives the session")
    func afterTheSession() throws {
        let peer = try ScriptedSession()
        _ = peer.exchange(peer.command(CDB.read(lba: 0, blocks: 8), flags: 0xC0, expected: 4096))
        let before = peer.registry.deviceStatistics()[0].statistics
        peer.session.tearDown()
        #expect(before.bytesRead == 4096)
        #expect(peer.registry.deviceStatistics()[0].statistics == before)
        #expect(peer.session.counters.statistics.bytesRead == 4096)
    }
}
