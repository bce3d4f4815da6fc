import Protection
import Testing

@Suite("Plans for the restore of a guest")
struct GuestRestorePlanTests {
    typealias Plan = GuestRestorePlan

    private func disk(_ target: String, _ way: Plan.Disk.Way, _ volumes: [String] = ["v"]) -> Plan.Disk {
        Plan.Disk(target: target, way: way, volumes: volumes, source: "somewhere")
    }

    private func situation(
        _ disks: [Plan.Disk], presence: Plan.Situation.Presence = .running, memory: Plan.Memory? = nil,
        held: Set<String> = ["v", "w"], tenants: [String: [String]] = [:], isFromClone: Bool = false,
        nameIsTaken: Bool = false
    ) -> Plan.Situation {
        Plan.Situation(
            guest: "g", presence: presence, disks: disks, memory: memory, held: held, tenants: tenants,
            isFromClone: isFromClone, nameIsTaken: nameIsTaken)
    }

    private let image = Plan.Disk.Way.file(relativePath: "g.img", path: "/srv/g.img")

    @Test("in place, a volume that the guest has for itself is reverted, and an image is copied out of a clone")
    func inPlace() throws {
        let plan = try Plan(situation([disk("vda", .network), disk("vdb", image, ["w"])]), .init())
        #expect(plan.actions["vda"] == .revert)
        #expect(
            plan.actions["vdb"] == .copy(fromCloneOf: "w", relativePath: "g.img", destination: "/srv/g.img"))
        #expect(plan.revertedVolumes == ["v"])
        #expect(plan.sourceVolumes == ["w"])
        #expect(plan.stopsGuest && plan.starts)
    }

    @Test("beside the original nothing is reverted or stopped")
    func beside() throws {
        let plan = try Plan(
            situation([disk("vda", .network), disk("vdb", image, ["w"])], tenants: ["v": ["another"]]),
            .init(beside: "h"))
        #expect(plan.actions["vda"] == .attachClone(ofVolume: "v"))
        #expect(
            plan.actions["vdb"] == .copy(fromCloneOf: "w", relativePath: "g.img", destination: "/srv/g.h.img"))
        #expect(plan.revertedVolumes.isEmpty && !plan.stopsGuest && plan.starts)
    }

    @Test("a guest that was off stays off, one that was gone is started, and the wish decides over both")
    func starts() throws {
        let disks = [disk("vda", .network)]
        #expect(try !Plan(situation(disks, presence: .off), .init()).starts)
        #expect(try Plan(situation(disks, presence: .absent), .init()).starts)
        #expect(try Plan(situation(disks, presence: .off), .init(start: true)).starts)
        #expect(try !Plan(situation(disks), .init(start: false)).starts)
    }

    @Test("the memory image is used for the whole guest in place, and for nothing else")
    func memory() throws {
        let disks = [disk("vda", .network), disk("vdb", .network, ["w"])]
        let memory = Plan.Memory(volumes: ["w"], relativePath: "m")
        let whole = try Plan(situation(disks, memory: memory), .init())
        #expect(whole.memory == memory && whole.sourceVolumes == ["w"])
        #expect(try Plan(situation(disks, memory: memory), .init(memory: false)).memory == nil)
        #expect(try Plan(situation(disks, memory: memory), .init(beside: "h")).memory == nil)
        #expect(try Plan(situation(disks, memory: memory), .init(disks: ["vda"])).memory == nil)
    }

    @Test("only the disks that were named are restored")
    func someDisks() throws {
        let plan = try Plan(
            situation([disk("vda", .network), disk("vdb", .network, ["w"])]), .init(disks: ["vdb"]))
        #expect(plan.actions == ["vdb": .revert])
        #expect(plan.revertedVolumes == ["w"])
    }

    @Test("what would touch others, or cannot be done, is refused before anything is touched")
    func refusals() {
        let network = [disk("vda", .network)]
        func refused(_ situation: Plan.Situation, _ wish: Plan.Wish = .init()) -> String {
            do {
                _ = try Plan(situation, wish)
                return "not refused"
            } catch {
                return error.message
            }
        }
        #expect(refused(situation(network, tenants: ["v": ["guest b"]])).contains("guest b"))
        #expect(refused(situation(network, held: ["w"])).contains("does not hold"))
        #expect(refused(situation([disk("vda", .network, ["v", "w"])])).contains("several volumes"))
        #expect(refused(situation(network, isFromClone: true)).contains("clone"))
        #expect(refused(situation(network, nameIsTaken: true)).contains("another guest"))
        #expect(refused(situation(network), .init(disks: ["vdz"])).contains("no disk vdz"))
        #expect(refused(situation([disk("vda", .none, [])])).contains("no disk of g"))
        #expect(refused(situation([disk("vda", .block(isWhole: false))]), .init(beside: "h")).contains("part of v"))
        let elsewhere = Plan.Memory(volumes: ["x"], relativePath: "m")
        #expect(refused(situation(network, memory: elsewhere)).contains("memory image"))
    }
}
