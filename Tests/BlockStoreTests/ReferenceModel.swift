import BlockStore

/// What a volume holds, by sector of 512 bytes. A sector's content follows from its tag; no tag means zeros.
struct VolumeModel: Equatable {
    var sizeBytes: UInt64
    var sectors: [UInt64: UInt64] = [:]

    mutating func write(_ range: Range<UInt64>, tag: UInt64) {
        for sector in range { sectors[sector] = tag == 0 ? nil : tag &+ sector }
    }

    mutating func unmap(_ range: Range<UInt64>) {
        if range.count < 10000 {
            for sector in range { sectors[sector] = nil }
        } else {
            sectors = sectors.filter { !range.contains($0.key) }
        }
    }

    mutating func resize(_ sizeBytes: UInt64) {
        if sizeBytes < self.sizeBytes { unmap((sizeBytes / 512)..<(self.sizeBytes / 512)) }
        self.sizeBytes = sizeBytes
    }
}

struct SnapshotModel: Equatable {
    var name: String
    var members: [VolumeID: VolumeModel]
    var attributes: [UInt8]
    var kind: SnapshotKind
}

/// A pool as it should be.
struct PoolModel: Equatable {
    var volumes: [VolumeID: VolumeModel] = [:]
    var snapshots: [SnapshotID: SnapshotModel] = [:]
    /// For each clone the snapshot that it stands on.
    var origins: [VolumeID: SnapshotID] = [:]
}

/// The content of a sector.
enum Sector {
    static let bytes = 512

    static func fill(_ buffer: UnsafeMutableRawBufferPointer, tag: UInt64) {
        for word in 0..<(buffer.count / 8) {
            let value = tag == 0 ? 0 : tag &+ UInt64(word) &* 0x9e37_79b9_7f4a_7c15
            buffer.storeBytes(of: value, toByteOffset: word * 8, as: UInt64.self)
        }
    }

    /// The tag of a sector, or nil when its words do not belong together.
    static func tag(_ bytes: UnsafeRawBufferPointer) -> UInt64? {
        let tag = bytes.load(as: UInt64.self)
        for word in [1, 17, 40, 63] {
            let expected = tag == 0 ? 0 : tag &+ UInt64(word) &* 0x9e37_79b9_7f4a_7c15
            if bytes.load(fromByteOffset: word * 8, as: UInt64.self) != expected { return nil }
        }
        return tag
    }

    /// The bytes of a run of sectors that were written with one tag.
    static func run(_ sectors: Range<UInt64>, tag: UInt64) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: sectors.count * Self.bytes)
        bytes.withUnsafeMutableBytes { raw in
            for (index, sector) in sectors.enumerated() {
                let part = UnsafeMutableRawBufferPointer(rebasing: raw[(index * 512)..<((index + 1) * 512)])
                fill(part, tag: tag == 0 ? 0 : tag &+ sector)
            }
        }
        return bytes
    }
}
