import BlockIO
import Simulation
import Synchronization
import Testing

@testable import BlockStore

@Suite("Single objects of a pool")
struct LookupTests {
    private func expectConsistent(_ pool: Pool) throws {
        let volumes = pool.volumes()
        let snapshots = pool.snapshots()
        let listings = pool.core.listings.load(ordering: .relaxed)
        for volume in volumes {
            #expect(try pool.volume(volume.id) == volume)
            #expect(pool.volume(named: volume.name) == volume)
            let own = snapshots.filter { $0.members.contains { $0.volume == volume.id } }
            #expect(pool.snapshots(of: volume.id) == own)
            #expect(pool.snapshotCount(of: volume.id) == own.count)
        }
        for snapshot in snapshots {
            #expect(try pool.snapshot(snapshot.id) == snapshot)
            #expect(pool.snapshotID(named: snapshot.name) == snapshot.id && pool.hasSnapshot(snapshot.id))
            #expect(pool.clones(of: snapshot.id) == volumes.filter { $0.clonedFrom?.snapshot == snapshot.id })
        }
        #expect(pool.snapshotCount() == snapshots.count)
        #expect(pool.core.listings.load(ordering: .relaxed) == listings)
    }

    @Test("are what the lists of all say, over groups, clones, promotions, reverts, deletions and a start")
    func lookups() throws {
        let disk = SimulatedDisk(seed: 1)
        var pool = try Pool.create(on: disk, options: .small())
        var generator = SeededGenerator(seed: 3)
        for round in 0..<200 {
            let volumes = pool.volumes()
            let snapshots = pool.snapshots()
            let volume = volumes.isEmpty ? nil : volumes[Int(generator.next() % UInt64(volumes.count))]
            let snapshot = snapshots.isEmpty ? nil : snapshots[Int(generator.next() % UInt64(snapshots.count))]
            do {
                switch generator.next() % 10 {
                case 0, 1:
                    _ = try pool.createVolume(id: .random(), name: "v\(round)", sizeBytes: mib)
                case 2, 3, 4:
                    let members = Set([volume, volumes.first].compactMap { $0?.id })
                    _ = try pool.createSnapshot(
                        id: .random(), name: "s\(round)", volumes: Array(members), attributes: [UInt8(round)])
                case 5, 6:
                    guard let snapshot else { continue }
                    _ = try pool.clone(
                        snapshot: snapshot.id, volume: snapshot.members[0].volume, newID: .random(), name: "c\(round)")
                case 7:
                    if let volume { _ = try pool.promote(volume.id) }
                case 8:
                    guard let snapshot else { continue }
                    _ = try pool.revert(
                        volumes: [snapshot.members[0].volume], to: snapshot.id, keepAs: .random(),
                        keepName: "k\(round)", attributes: [])
                default:
                    if let snapshot, round % 2 == 0 { try pool.deleteSnapshot(snapshot.id) }
                    if let volume, round % 2 == 1 { try pool.deleteVolume(volume.id) }
                }
            } catch {
                // Refused: what stands on something keeps it.
            }
            if round % 10 == 9 { try expectConsistent(pool) }
            if round % 50 == 49 {
                try pool.maintain()
                try pool.close()
                pool = try Pool.open(on: disk, options: .small())
                try expectConsistent(pool)
            }
        }
        #expect(pool.snapshotCount() > 5 && pool.volumes().contains { $0.clonedFrom != nil })
        #expect(pool.volume(named: "nobody") == nil && pool.snapshotID(named: "nobody") == nil)
        #expect(throws: PoolError.self) { try pool.volume(.random()) }
        #expect(pool.snapshots(of: .random()).isEmpty && pool.clones(of: .random()).isEmpty)
        #expect(PoolChecker.check(pool).problems == [])
        try pool.close()
    }
}
